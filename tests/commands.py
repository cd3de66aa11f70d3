"""What tests of the command line ask of its answers and of its folders."""

import numpy as np


def one_line(result):
    """The one line of a failure."""
    code, out, err = result
    assert code == 1 and out == "" and err.count("\n") == 1, result
    assert err.startswith("glance-fast: ")
    return err.removeprefix("glance-fast: ").rstrip("\n")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def never(*arguments, **more):
    raise AssertionError("must not be reached")


def score_dir(cli, run, images, out, *more):
    return cli("score-dir", run, images, "--out", out, "--device", "cpu", *more)


def check_same(out, whole):
    """The same files, names in the same order, and scores but for digits that follow what a batch holds."""
    files = [{p.relative_to(folder) for p in folder.rglob("*")} for folder in (out, whole)]
    assert files[0] == files[1]
    ours, theirs = (
        [line.split(",") for line in (folder / "scores.csv").read_text().splitlines()[1:]]
        for folder in (out, whole)
    )
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    scores = np.array([[float(row[1]) for row in rows] for rows in (ours, theirs)])
    # Rounding is that of the largest scores: small ones are differences of large numbers.
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6 * np.abs(scores).max())
