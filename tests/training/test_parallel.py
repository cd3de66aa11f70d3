"""A training as several processes: what it makes is what one process makes, but for rounding."""

from __future__ import annotations

import os
import shutil
import signal
from itertools import product

import numpy as np
import pytest
import torch
from rich.console import Console
from samples import MASKED, SMALL
from torch import distributed, multiprocessing, nn

from glance_fast.config import Config
from glance_fast.data.files import read_tensors
from glance_fast.data.layouts import normal_images
from glance_fast.errors import UserError
from glance_fast.nets.heads import DistortionHead
from glance_fast.progress import Reporter
from glance_fast.run import load
from glance_fast.training import fit as training
from glance_fast.training.parallel import ALONE, Workers


def _process(rank, count, folder, function, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(f"{folder}/store", count), rank=rank, world_size=count
    )
    try:
        found = function(Workers(rank, count), *arguments)
    except (UserError, KeyboardInterrupt) as error:
        found = repr(error)
    torch.save(found, f"{folder}/{rank}.pt")
    if isinstance(found, str):
        os._exit(0)  # others may have failed alike, and answer no more
    distributed.destroy_process_group()


def in_processes(count, folder, function, *arguments):
    """What a function of ``Workers`` gives in each of so many processes."""
    folder.mkdir()
    multiprocessing.spawn(_process, (count, folder, function, arguments), count)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def normalised(workers, shape, bf16):
    """What one BatchNorm says of a batch, of which each process has its share, and all gradients."""
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    net = nn.Sequential(kind(shape[1], momentum=0.3))
    nn.init.normal_(net[0].weight)
    x = (5 + 2 * torch.randn(shape)).requires_grad_()
    target = torch.randn(shape)
    with workers.synced(net):
        given = x.bfloat16() if bf16 else x
        (y,) = workers.divided(lambda part: (net(part),), given)
        (y.float() * target).square().sum().backward()
    workers.average([*net.parameters(), x])
    assert type(net[0]) is kind
    assert y.dtype == given.dtype
    return [
        y.detach(),
        x.grad,
        *(p.grad for p in net.parameters()),
        *net.state_dict().values(),
        net.eval()(x),
    ]


def all_normalised(workers):
    cases = product([(7, 5), (5, 3, 4, 6), (3, 2, 1, 2)], [False, True])
    return [(bf16, normalised(workers, shape, bf16)) for shape, bf16 in cases]


def test_batch_norm_sees_the_whole_batch(tmp_path):
    alone = all_normalised(ALONE)
    for of_process in in_processes(3, tmp_path / "processes", all_normalised):
        for (bf16, found), (_, wanted) in zip(of_process, alone, strict=True):
            for own, expected in zip(found, wanted, strict=True):
                tolerance = float(expected.detach().abs().max()) * (3e-2 if bf16 else 1e-5)
                torch.testing.assert_close(own, expected, rtol=0, atol=tolerance)


def learned(workers):
    """The loss of a net whose batch is divided and of a head that sees all of it, and gradients of both."""
    torch.manual_seed(0)
    net, head = nn.Linear(6, 4), DistortionHead(4, 8)
    x = torch.randn(7, 6)

    def of_share(part):
        assert workers.count == 1 or len(part) in (2, 3)
        return net(part), part.new_ones(len(part))

    z, ones = workers.divided(of_share, x)
    assert ones.tolist() == [1] * 7
    # Not a sum over items: each process must know them all.
    loss = head(z, z.square()).sigmoid().mean() * torch.corrcoef(z.T)[0, 1]
    loss.backward()
    parameters = [*net.parameters(), *head.parameters()]
    workers.average(parameters)
    return [loss.detach(), *(p.grad for p in parameters), head.norm.running_var]


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    alone = learned(ALONE)
    assert all(part.abs().max() > 1e-4 for part in alone[1:3])
    for found in in_processes(3, tmp_path / "processes", learned):
        for own, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-7)


def little(workers):
    """Fewer items than processes: all compute them."""
    (found,) = workers.divided(lambda part: (2 * torch.from_numpy(part),), np.arange(2))
    return found, workers.any(workers.rank == 1), workers.any(False), workers.of_first([workers.rank, "a"])


def test_what_cannot_be_divided_all_compute(tmp_path):
    for found, some, none, first in in_processes(3, tmp_path / "processes", little):
        assert found.tolist() == [0, 2] and some is True and none is False and first == [0, "a"]


def train(workers, paths, run, settings, stop_at=None):
    """A training: all that the model consists of, and the gradients of the first step of each stage."""
    training.has_bf16 = lambda device: False
    gradients, clip = {}, nn.utils.clip_grad_norm_
    reporter = Reporter(Console(quiet=True))

    def step(stage, done):
        if workers.rank == 1 and (stage.name, done) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(parameters, most):
        flat = torch.cat([p.grad.flatten() for p in parameters])
        gradients.setdefault(len(parameters), flat)
        return clip(parameters, most)

    reporter.step, nn.utils.clip_grad_norm_ = step, note
    # Only the first process may write.
    place = run if workers.first else run.with_name("nowhere")
    try:
        model = training.fit(
            paths, place, Config(**settings), reporter=reporter, device="cpu", workers=workers
        )
    finally:
        nn.utils.clip_grad_norm_ = clip
    return dict(model.state_dict()), list(gradients.values())


SETTINGS = {"surround": SMALL, "pyramid": MASKED}


@pytest.fixture(scope="module")
def alone(parts, tmp_path_factory):
    """What one process makes of the same, by the net's name: state, gradients, run folder."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "has_bf16", None)  # put back at the end
        return {
            name: (*train(ALONE, normal_images(parts), folder / name, settings), folder / name)
            for name, settings in SETTINGS.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize(("net", "count"), [("surround", 3), ("pyramid", 2)])
def test_the_training_is_that_of_one_process(parts, alone, tmp_path, net, count):
    run = tmp_path / "run"
    found = in_processes(count, tmp_path / "processes", train, normal_images(parts), run, SETTINGS[net])
    state, gradients, before = alone[net]
    assert len(gradients) == 2  # of Local-Net, then of Global-Net and the distortion head
    for others, their_gradients in found:
        for own, expected in zip(their_gradients, gradients, strict=True):
            assert (own - expected).norm() < 1e-3 * expected.norm()
        for key, value in others.items():
            assert torch.equal(value, found[0][0][key]), key
    # Steps make rounding larger; nothing else may be new.
    written = load(run, "cpu").state_dict()
    assert {k: v.shape for k, v in written.items() if v.dim() > 1} == {
        k: v.shape for k, v in state.items() if v.dim() > 1
    }
    assert all(torch.equal(value, found[0][0][key]) for key, value in written.items())
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in before.iterdir())
    assert not run.with_name("nowhere").exists()


@pytest.mark.slow
def test_processes_stop_together_and_any_number_goes_on(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bf16", None)  # put back at the end
    run, paths = tmp_path / "run", normal_images(parts)
    found = in_processes(2, tmp_path / "two", train, paths, run, SMALL, ("global-32", 3))
    assert found == ["KeyboardInterrupt()"] * 2
    (checkpoint,) = (run / "checkpoint").glob("global-32*")
    assert read_tensors(checkpoint, "")[1]["step"] == 3
    assert not run.with_name("nowhere").exists()
    # What the others hold comes from the first, whose checkpoint it is.
    _, (expected,) = train(ALONE, paths, shutil.copytree(run, tmp_path / "copy"), SMALL)
    for state, (gradient,) in in_processes(3, tmp_path / "three", train, paths, run, SMALL):
        assert (gradient - expected).norm() < 1e-3 * expected.norm()
        assert torch.isfinite(state["scales.0.residual_mean"]).all()
    rows = [row.split(",")[:2] for row in (run / "log.csv").read_text().splitlines()[1:]]
    assert [int(step) for stage, step in rows if stage == "global-32"] == [1, 2, 3, 4, 5, 6]
    assert not (run / "checkpoint").exists()


def refused(workers, paths, run, settings):
    own = paths[workers.rank :]
    return train(workers, own, run, {**settings, "steps": 1, "finetune_steps": 0})


def test_processes_that_see_other_images_are_refused(parts, tmp_path):
    found = in_processes(2, tmp_path / "processes", refused, normal_images(parts), tmp_path / "run", SMALL)
    said = "one process has other images than another; give all of them the same"
    assert found == [repr(UserError(said))] * 2 and not (tmp_path / "run").exists()


def test_more_processes_than_images_in_a_batch_are_refused(parts, tmp_path, reporter):
    with pytest.raises(UserError, match=r"^5 processes for batches of 4 images: start fewer, or .* `batch`"):
        training.fit(
            normal_images(parts), tmp_path, Config(**SMALL), reporter=reporter, workers=Workers(0, 5)
        )
