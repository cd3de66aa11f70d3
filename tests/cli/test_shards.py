"""``glance-fast score-dir --shard``: several machines, one folder."""

import re
import shutil

from commands import check_same, never, one_line, score_dir, tree


def test_shards_become_one_table(cli, run_folder, photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert score_dir(cli, run_folder, photos, whole, "--overlays")[0] == 0
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "2/3", "--overlays")
    assert code == 0 and re.fullmatch(
        rf"shard 2/3: 1 image scored, \d anomalous: {out}/scores-2-of-3.csv\n", said
    )
    assert err.startswith("scoring shard 2/3: ")
    # Nothing to do is no error.
    code, said, _ = score_dir(cli, run_folder, photos, out, "--shard", "3/3")
    assert code == 0 and said == f"shard 3/3: 0 images scored, 0 anomalous: {out}/scores-3-of-3.csv\n"
    line = one_line(score_dir(cli, run_folder, photos, out, "--shard", "2/3"))
    assert line.startswith(f"{out}: is not empty: shard 2/3 was begun there; --resume goes on with it")
    (photos / "bad.png").write_text("no image")
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3")
    assert code == 1 and said == "" and "photographs came or went between the shards; --resume" in err
    (photos / "bad.png").unlink()
    code, said, _ = score_dir(cli, run_folder, photos, out, "--shard", "1/3", "--resume", "--overlays")
    assert code == 0 and re.fullmatch(rf"2 images scored, \d anomalous: {out}/scores.csv\n", said)
    check_same(out, whole)
    before = tree(out)
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3", "--resume")
    assert (code, said) == (0, f"shard 1/3 is done, and joined: {out}/scores.csv\n") and tree(out) == before
    assert err == "for what is new or failed, give --resume without --shard\n"


def test_a_shard_and_the_whole_tell_of_images_that_failed(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    (photos / "bad.png").write_text("no image")
    assert score_dir(cli, run_folder, photos, out, "--shard", "2/3")[0] == 0
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "3/3")
    assert code == 3 and said.startswith("shard 3/3: 0 images scored")
    assert f"1 image could not be scored; column error of {out}/scores-3-of-3.csv says why\n" in err
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3")
    assert code == 3 and said.startswith("2 images scored")
    told = f"1 image could not be scored; column error of {out}/scores.csv says why\n"
    assert told in err
    # Joined already, it is asked for again.
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3", "--resume")
    assert code == 3 and said.startswith("shard 1/3 is done, and joined") and err.endswith(told)


def test_one_shard_of_one_is_the_plain_command(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    for more in ((), ("--resume",), ("--overwrite",)):
        code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/1", *more)
        assert code == 0 and said.endswith(f" anomalous: {out}/scores.csv\n") and "shard" not in err
    assert "is not empty; --resume" in one_line(score_dir(cli, run_folder, photos, out, "--shard", "1/1"))


def test_shards_that_are_refused(cli, run_folder, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0
    before = tree(out)
    monkeypatch.setattr("glance_fast.jobs.folder.score_directory", never)
    for shard in ("0/4", "5/4", "a/b", "3"):
        line = one_line(score_dir(cli, run_folder, photos, out, "--shard", shard))
        assert line == f"--shard {shard}: expected K/N with K from 1 to N, such as 2/4"
    for more, message in (
        (["--shard", "2/2", "--overwrite"], "--overwrite would delete what other shards did; choose another"),
        (["--shard", "1/2", "--overwrite", "--resume"], "--overwrite would delete what other shards did"),
        (["--shard", "2/3"], f"{out}: holds shard 1/2; give --shard K/2 there, or choose another --out"),
        (["--shard", "2/2", "--resume"], f"{out}: nothing of shard 2/2 to resume there; leave --resume away"),
        ([], f"{out}: is not empty; --resume goes on with the scoring there"),
    ):
        assert one_line(score_dir(cli, run_folder, photos, out, *more)).startswith(message)
    (tmp_path / "file").touch()
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "file", "--shard", "1/2"))
    assert line == f"{tmp_path}/file: is a file; --out names a folder"
    assert tree(out) == before


def test_without_shard_the_work_of_shards_is_gone_on_with_or_replaced(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    for more in ("--resume", "--overwrite"):
        shutil.rmtree(out, ignore_errors=True)
        assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0
        kept = (out / "maps/0.png.tiff").stat().st_mtime_ns
        code, said, _ = score_dir(cli, run_folder, photos, out, more)
        assert code == 0 and said.startswith("2 images scored")
        assert {p.name for p in out.iterdir()} == {"scores.csv", "run.json", "maps"}
        assert ((out / "maps/0.png.tiff").stat().st_mtime_ns == kept) == (more == "--resume")


def test_a_shard_leaves_what_others_are_writing(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    (out / "maps").mkdir(parents=True)
    (out / "run-2-of-2.json").write_text("{}")
    # A shard that is damaged is told of before anything is written.
    line = one_line(score_dir(cli, run_folder, photos, out, "--shard", "1/2"))
    assert line.startswith(f"{out}/run-2-of-2.json: damaged")
    (out / "run-2-of-2.json").unlink()
    (out / "scores-2-of-2.csv").touch()
    writing = out / "maps/.tmp-0123456789abcdef.tiff"
    writing.touch()
    assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0 and writing.exists()
