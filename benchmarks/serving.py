"""What a server costs beside the model it serves, and how long its clients wait.

    python -m benchmarks.serving RUN IMAGES [--seconds 15] [--clients 8] [--rounds 5]
    python -m benchmarks.serving RUN IMAGES --broken 10000

The first scores the images by ``model.score`` in batches, from their files, and then by clients who each keep
a connection to ``glance-fast serve`` in a process of its own; in turns, so that both see the same machine.
The result is kept in ``benchmarks/results/serving.json`` and written into docs/commands/serve.md. The second
sends so many requests, a tenth of them broken, and says how they ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

# As the command line has it, before PyTorch is imported: both sides alike.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import glance_fast
from benchmarks.costs.machine import describe
from benchmarks.tables import ROOT, rewrite
from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image
from glance_fast.device import use_threads

RESULTS, PAGE = ROOT / "benchmarks/results/serving.json", ROOT / "docs/commands/serve.md"
# Seconds before a server is measured.
LEAD = 2


@contextmanager
def server(run, *more):
    """A server in a process of its own; gives its port."""
    command = [sys.executable, "-m", "glance_fast.cli", "serve", str(run), "--port", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield int(re.search(r":(\d+); ", process.stderr.readline())[1])
        assert process.poll() is None, "the server has ended"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


def ask(port, bodies, clients, again):
    """Have clients send bodies while ``again(how many were sent)``: begin, end, status, score of each."""
    answers, lock = [], threading.Lock()

    def one():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                if not again(len(answers)):
                    return
                place = len(answers)
                answers.append(None)
            began = time.perf_counter()
            connection.request("POST", "/score", bodies[place % len(bodies)])
            reply = connection.getresponse()
            said = json.loads(reply.read())
            answers[place] = began, time.perf_counter(), reply.status, said.get("score")

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def compare(run, paths, seconds, clients, rounds):
    """Images a second by ``model.score`` and by a server, and how long its clients wait."""
    threads = use_threads(None)
    model = glance_fast.load(run, "cpu")
    together = model.at_once()
    bodies = [path.read_bytes() for path in paths]
    expected = model.score(paths).scores  # and what is compiled on first use
    plain, served, waits = [], [], []
    with server(run, "--device", "cpu") as port:
        ask(port, bodies, clients, lambda sent: sent < 4 * clients)
        for _ in range(rounds):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                start = count % len(paths)
                batch = (paths[start:] + paths)[:together]
                model.score(batch)
                count += len(batch)
            plain.append(count / (time.perf_counter() - began))
            # Of a busy server: neither the first batch, of the client that came first, nor the last ones.
            begin = time.perf_counter() + LEAD
            end = begin + seconds
            answers = ask(port, bodies, clients, lambda sent, end=end: time.perf_counter() < end)
            within = [came - asked for asked, came, _, _ in answers if begin <= came < end]
            served.append(len(within) / seconds)
            waits += within
            for place, (_, _, status, score) in enumerate(answers):
                wanted = expected[place % len(paths)]
                assert status == 200 and abs(score - wanted) <= 1e-3 * max(1, abs(wanted)), (status, score)
    cuts = statistics.quantiles(waits, n=100)
    return {
        "machine": describe()["processor"],
        "threads": threads,
        "sizes": sorted({read_image(path).shape[:2] for path in paths}),
        "clients": clients,
        "together": together,
        "score_per_second": plain,
        "served_per_second": served,
        "p50_ms": 1e3 * cuts[49],
        "p99_ms": 1e3 * cuts[98],
    }


def table(results):
    """The results, and what they were measured on."""
    where = f"{results['machine']}, {results['threads']} threads"
    plain, served = (statistics.median(results[f"{way}_per_second"]) for way in ("score", "served"))
    sizes = ", ".join(f"{width}x{height}" for height, width in results["sizes"])
    return "\n".join(
        (
            f"| photographs of {sizes} | images a second | ratio |",
            "|---|---|---|",
            f"| `model.score` in Python, {results['together']} at a time | {plain:.1f} | 1 |",
            f"| `serve`, {results['clients']} clients | {served:.1f} | {served / plain:.2f} |",
            "",
            f"Half of the answers came within {results['p50_ms']:.0f} ms, 99 of 100 within "
            f"{results['p99_ms']:.0f} ms.",
            f"Net `surround` with the default settings, on {where}.",
        )
    )


def damage(run, paths, requests, clients):
    rng, bodies = random.Random(0), []
    for place, path in enumerate(paths * -(-100 // len(paths))):
        body = path.read_bytes()
        if place % 10 == 9:
            kind = rng.randrange(4)
            cut = rng.randrange(len(body))
            body = (b"", body[:cut], body[:cut] + rng.randbytes(2000), rng.randbytes(3000))[kind]
        bodies.append(body)
    bodies = bodies[:100]
    began = time.perf_counter()
    with server(run, "--device", "cpu") as port:
        answers = ask(port, bodies, clients, lambda sent: sent < requests)
    print(dict(Counter(status for _, _, status, _ in answers)), f"in {time.perf_counter() - began:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--broken", type=int)
    given = parser.parse_args()
    paths = list_images(given.images)
    if given.broken:
        damage(given.run, paths, given.broken, given.clients)
    else:
        results = compare(given.run, paths, given.seconds, given.clients, given.rounds)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"load of the machine in the last minute: {os.getloadavg()[0]:.1f}")
        print(table(results))
        assert rewrite(PAGE, {"serving": table(results)})


if __name__ == "__main__":
    main()
