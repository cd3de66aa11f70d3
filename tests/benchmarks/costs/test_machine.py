"""What is said of a machine, and rates that are the best of what was seen."""

import json

import torch

from benchmarks.costs import machine


def test_a_machine_is_described():
    found = machine.describe()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["device"] == "cpu" or torch.cuda.is_available()
    assert json.loads(json.dumps(found)) == found


def test_the_fastest_run_counts_and_the_first_does_not():
    durations = iter([0.0, 0.02, 0.0, 0.02])
    assert 0 <= machine.best(lambda: machine.time.sleep(next(durations)), 3) < 0.02


def test_rates_are_positive():
    assert machine.convolution_rate(torch.float32, {(8, 8): 1}) > 1e6
    assert machine.copy_bandwidth(1 << 16) > 1e6


def test_rates_keep_the_best(monkeypatch):
    seen = iter([(3.0, 2.0, 5.0), (4.0, 1.0, 5.0)])
    rates = machine.Rates()
    for _ in range(2):
        fp32, bf16, copy = next(seen)
        monkeypatch.setattr(
            machine, "convolution_rate", {torch.float32: fp32, torch.bfloat16: bf16}.__getitem__
        )
        monkeypatch.setattr(machine, "copy_bandwidth", lambda copy=copy: copy)
        rates.measure()
    assert rates.best == {"fp32": 4.0, "bf16": 2.0, "copy": 5.0}


def test_our_own_work_is_part_of_all():
    before = machine.processor_time()
    sum(i * i for i in range(3_000_000))
    elapsed, busy, ours = (b - a for a, b in zip(before, machine.processor_time(), strict=True))
    # The processors' clock ticks a hundred times a second.
    assert 0 < ours <= busy + 0.05 and busy <= elapsed + 0.05


def test_everything_is_measured_and_written(monkeypatch, tmp_path, capsys):
    rows = [machine.entry("op", str(i), "float32", machine.Work(10, 5, 5), 0.5) for i in range(3)]
    monkeypatch.setattr(machine, "network_times", lambda: rows[:1])
    monkeypatch.setattr(machine, "operator_times", lambda: rows[1:])
    monkeypatch.setattr(machine, "convolution_rate", lambda dtype: 2e9)
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 3e9)
    machine.main(["--results", str(tmp_path / "new" / "m.json")])
    found = json.loads((tmp_path / "new" / "m.json").read_text(encoding="utf-8"))
    assert found["times"] == rows and (found["fp32"], found["copy"]) == (2e9, 3e9)
    assert 0 <= found["others"] <= 1
    assert "fp32 2 GFLOP/s, bf16 2 GFLOP/s, copy 3.0 GB/s" in capsys.readouterr().out
