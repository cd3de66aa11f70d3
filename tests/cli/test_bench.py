"""``glance-fast bench``."""

import json

from commands import one_line


def test_bench_measures_and_writes(cli, masked_run, photos, tmp_path):
    out = tmp_path / "new" / "bench.json"
    out.parent.mkdir()
    code, said, remarks = cli("bench", masked_run, photos, "--out", out, "--device", "cpu")
    assert code == 0 and max(map(len, (said + remarks).splitlines())) <= 100
    assert r"\n" not in said + remarks and "…" not in said, "nothing is escaped or cut"
    for text in (
        "64x64 pixels",
        "MiB",
        "agrees",
        "dense fp32",
        "grouped fp32",
        "patchwise fp32",
        "patches/s",
        "windows",
    ):
        assert text in said
    found = json.loads(out.read_text())
    assert {row["engine"] for row in found["engines"]} == {"dense", "grouped", "patchwise"}
    line = one_line(cli("bench", masked_run, photos, "--out", out))
    assert line == f"{out}: exists already; --overwrite replaces it"
    assert "is a folder" in one_line(cli("bench", masked_run, "--out", tmp_path))
    assert "no image in this folder" in one_line(cli("bench", masked_run, out.parent))


def test_a_file_that_cannot_be_written_is_refused_before_work_is_done(cli, run_folder, tmp_path, monkeypatch):
    def measured(*arguments, **more):
        raise AssertionError

    monkeypatch.setattr("glance_fast.jobs.bench.bench", measured)
    (tmp_path / "file").touch()
    line = one_line(cli("bench", run_folder, "--out", tmp_path / "file" / "bench.json"))
    assert f"cannot be written, for {tmp_path / 'file'} is a file; choose another --out" in line
    folder = tmp_path / "locked"
    folder.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != folder)
    line = one_line(cli("bench", run_folder, "--out", folder / "new" / "bench.json"))
    assert line == f"{folder}: cannot be written to; change its permissions or choose another --out"


def test_bench_of_a_net_of_one_engine(cli, run_folder, photos, tmp_path):
    out = tmp_path / "bench.json"
    code, said, _ = cli("bench", run_folder, photos, "--out", out, "--device", "cpu")
    assert code == 0 and "auto fp32" in said and "dense" not in said and "patchwise" not in said
    assert {row["engine"] for row in json.loads(out.read_text())["engines"]} == {"auto"}


def test_bench_without_photographs_says_so(cli, masked_run):
    code, said, err = cli("bench", masked_run, "--no-patchwise", "--device", "cpu")
    assert code == 0 and "agreement is that on noise" in err and "patchwise" not in said


def test_bench_says_where_there_is_no_c_code(cli, masked_run, run_folder, monkeypatch):
    for compiled in (None, "AVX2"):
        monkeypatch.setattr("glance_fast.jobs.bench.compiled", lambda compiled=compiled: compiled)
        for run in (masked_run, run_folder):
            code, _, err = cli("bench", run, "--no-patchwise", "--device", "cpu")
            assert code == 0 and ("no C code" in err) == (compiled is None and run == masked_run)
