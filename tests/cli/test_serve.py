"""``glance-fast serve``."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from commands import one_line

from glance_fast import load


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ended"])
def test_it_answers_until_a_signal(run_folder, photos, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "glance_fast.cli", "serve", str(run_folder), "--port", "0", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        address = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+); Ctrl-C ends it\n", line)[1]
        body = (photos / "0.png").read_bytes()
        request = urllib.request.Request(f"{address}/score", body, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    expected = load(run_folder, "cpu").score([photos / "0.png"]).scores[0]
    assert said["score"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert (process.returncode, out, err) == (130, "", "glance-fast: stopped\n")


def test_what_is_wrong_is_one_line(cli, run_folder, photos, monkeypatch):
    assert "not a run folder" in one_line(cli("serve", photos))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = one_line(cli("serve", run_folder, "--device", "cpu", "--port", port))
    assert line == (
        f"127.0.0.1:{port}: cannot be listened on: Address already in use; choose another --host or --port"
    )
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = one_line(cli("serve", run_folder, "--device", "cpu"))
    assert line == "serving needs fastapi and uvicorn: pip install 'glance-fast[serve]'"
