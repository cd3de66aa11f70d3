"""Threads that score whatever waits."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from samples import draw_part

from glance_fast.serving.batcher import Batcher


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [draw_part(rng, defect=i % 2 == 1) for i in range(12)]


@pytest.fixture
def gate(model, monkeypatch):
    """Scoring waits until it is set; ``sizes`` are those of the batches, and ``threads`` what they have."""
    gate, score = threading.Event(), model.score
    gate.sizes, gate.threads = [], []

    def gated(batch, *how):
        gate.threads.append(torch.get_num_threads())
        gate.sizes.append(len(batch))
        gate.wait(30)
        return score(batch, *how)

    monkeypatch.setattr(model, "score", gated)
    return gate


def taken(gate, batches=1):
    """Wait until so many batches are being scored."""
    while len(gate.sizes) < batches:
        threading.Event().wait(0.01)


def test_scores_and_maps_are_those_of_the_model(model, images):
    expected = model.score(images)
    told = []
    batcher = Batcher(model, threads=1, tell=lambda *batch: told.append(batch))
    found = [answer.result(60) for answer in [batcher.submit(image) for image in images]]
    batcher.close()
    np.testing.assert_allclose([one.score for one in found], expected.scores, rtol=1e-4, atol=1e-4)
    for one, score_map in zip(found, expected.maps, strict=True):
        np.testing.assert_allclose(one.map, score_map, rtol=1e-3, atol=1e-3 * np.abs(expected.maps).max())
    assert sum(batch[0] for batch in told) == 12 and all(batch[1] > 0 for batch in told)


def test_its_thread_computes_as_it_was_told(model, monkeypatch):
    asked = []
    for name in ("pick_device", "use_threads"):
        monkeypatch.setattr(
            f"glance_fast.serving.batcher.{name}",
            lambda value, name=name: asked.append((name, value, threading.current_thread().name)) or 1,
        )
    batcher = Batcher(model, threads=1)
    batcher.close()
    assert asked == [("use_threads", 1, "glance-score-0"), ("pick_device", model.device, "glance-score-0")]


def test_two_batches_share_the_threads_and_one_alone_has_all(model, images, gate):
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # more than this may be more than there are processors
    try:
        batcher = Batcher(model, threads=3)
        answers = [batcher.submit(images[0])]
        taken(gate)
        answers += [batcher.submit(images[1])]
        taken(gate, 2)
        answers += [batcher.submit(image) for image in images[2:8]]
        gate.set()
        scores = [answer.result(60).score for answer in answers]
        batcher.close()
    finally:
        torch.set_num_threads(before)
    assert gate.sizes[:2] == [1, 1] and max(gate.sizes) <= 4 and sum(gate.sizes) == 8
    assert gate.threads[0] == 3 and gate.threads[1] in (1, 2), "the first was alone"
    np.testing.assert_allclose(scores, model.score(images[:8]).scores, rtol=1e-4, atol=1e-4)


def test_no_more_than_fit_together(model, images, gate, monkeypatch):
    monkeypatch.setattr(model, "at_once", lambda precision="auto": 4)
    batcher = Batcher(model, threads=1)
    answers = [batcher.submit(images[0])]
    taken(gate)
    answers += [batcher.submit(image) for image in images[1:]]
    gate.set()
    batcher.close()
    assert gate.sizes == [1, 4, 4, 3] and all(answer.done() for answer in answers)


def test_an_answer_that_nobody_waits_for_is_not_made(model, images, gate):
    batcher = Batcher(model, threads=1)
    kept = [batcher.submit(images[0])]
    taken(gate)
    gone = batcher.submit(images[1])
    kept.append(batcher.submit(images[2]))
    assert gone.cancel()
    gate.set()
    assert all(np.isfinite(answer.result(60).score) for answer in kept) and batcher.runs
    batcher.close()
    assert gate.sizes == [1, 1] and not batcher.runs


def test_a_batch_that_fails_does_not_end_it(model, images, monkeypatch):
    score = model.score

    def fail(*arguments):
        raise MemoryError("full")

    batcher = Batcher(model, threads=1)
    monkeypatch.setattr(model, "score", fail)
    with pytest.raises(MemoryError, match="full"):
        batcher.submit(images[0]).result(60)
    monkeypatch.setattr(model, "score", score)
    assert np.isfinite(batcher.submit(images[0]).result(60).score)
    batcher.close()


def test_closed_it_answers_what_waits_and_takes_nothing_more(model, images, gate):
    batcher = Batcher(model, threads=1)
    answers = [batcher.submit(image) for image in images]
    threading.Timer(0.1, gate.set).start()
    batcher.close()
    assert all(np.isfinite(answer.result(0).score) for answer in answers)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(images[0])
