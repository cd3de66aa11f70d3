"""A model as a plain graph: its parts, and the whole, beside the model itself."""

import numpy as np
import pytest
import torch
from samples import MASKED, SMALL, draw_part

import glance_fast
from glance_fast import Config, Glance, UserError
from glance_fast.export.graph import Interpolation, PlainSurround, ScoringGraph
from glance_fast.geometry import PatchGrid
from glance_fast.maps import interpolate
from glance_fast.nets.surround import SurroundNet


def close(found, expected):
    found, expected = (np.asarray(values) for values in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "grid",
    [
        PatchGrid(256, 320, 32, 8, 8),
        PatchGrid(160, 96, 64, 16, 16),
        # A kernel that leaves one of the far places alone.
        PatchGrid(96, 48, 32, 4),
    ],
)
@torch.no_grad()
def test_surround(grid):
    torch.manual_seed(0)
    net = SurroundNet(grid, features=16, width=8).eval()
    torch.nn.init.normal_(net.bias)
    local = torch.randn(3, grid.rows, grid.cols, 16)
    close(PlainSurround(net).eval()(local), net(local))


@pytest.mark.parametrize("settings", [{}, {"idw_neighbours": 3}, {"idw_neighbours": 0, "smoothing": 0.0}])
@pytest.mark.parametrize("grid", [PatchGrid(64, 80, 32, 16, 8), PatchGrid(62, 74, 32, 4, 1)])
@torch.no_grad()
def test_interpolation(grid, settings):
    config = Config(**{**SMALL, **settings})
    scores = torch.randn(3, len(grid), generator=torch.Generator().manual_seed(0))
    close(Interpolation(grid, config)(scores), interpolate(scores, grid, config))


def test_maps_of_too_many_neighbours_are_refused():
    grid = PatchGrid(512, 512, 32, 8)
    with pytest.raises(UserError, match=r"^idw_neighbours: 3721 for each of 262144 pixels .* fewer"):
        Interpolation(grid, Config(idw_neighbours=0))


@pytest.mark.parametrize(
    "settings",
    [
        {"patch": (32, 64), "stride": (8, 16), "frame": (8, 16), "image_size": (96, 160)},
        {"blend": "paper", "smoothing": 0.0},
        {"lambda_s": 1.0},
    ],
)
@torch.no_grad()
def test_the_whole_of_an_untrained_model(settings):
    model = Glance(Config(**{**SMALL, **settings}))
    rng = np.random.default_rng(0)
    images = np.stack([draw_part(rng, size=100, defect=bool(i)) for i in range(2)])
    maps, scores, anomalous = ScoringGraph(model).eval()(torch.from_numpy(images))
    ours = model.score(list(images))
    close(maps, ours.maps)
    close(scores, ours.scores)
    assert anomalous.dtype == torch.bool and not anomalous.any(), "without a threshold nothing is"


@torch.no_grad()
@pytest.mark.parametrize("blend", ["calibrated", "paper"])
def test_a_model_with_a_region_of_interest(blend):
    settings = {
        "patch": (32, 64),
        "stride": (8, 16),
        "frame": (8, 16),
        "image_size": (96, 160),
        "blend": blend,
    }
    model = Glance(Config(**{**SMALL, **settings}))
    whole = ScoringGraph(model)
    model.inside = torch.zeros(96, 160, dtype=torch.bool)
    model.inside[20:50, 30:100] = True
    images = [draw_part(np.random.default_rng(i), size=100, defect=bool(i)) for i in range(2)]
    ours = model.score(images)
    maps, scores, _ = ScoringGraph(model).eval()(torch.from_numpy(np.stack(images)))
    close(maps, ours.maps)
    close(scores, ours.scores)
    assert maps[:, ~model.inside].max() <= 0
    assert (maps - whole.eval()(torch.from_numpy(np.stack(images)))[0]).abs().max() > 0


@torch.no_grad()
def test_the_verdict_is_the_models(run_folder):
    model = glance_fast.load(run_folder, "cpu")
    image = draw_part(np.random.default_rng(0), defect=True)
    batch = torch.from_numpy(image[None])
    score = ScoringGraph(model).eval()(batch)[1].double().item()
    for threshold, verdict in ((score, False), (np.nextafter(score, -np.inf), True)):
        object.__setattr__(model.calibration, "threshold", float(threshold))
        assert ScoringGraph(model).eval()(batch)[2].tolist() == [verdict]


def test_masked_nets_and_models_in_training_are_refused():
    with pytest.raises(UserError, match=r"^net 'pyramid' cannot be exported: .*net=surround"):
        ScoringGraph(Glance(Config(**MASKED)))
    with pytest.raises(UserError, match="training mode"):
        ScoringGraph(Glance(Config(**SMALL)).train())
