"""Maps from patch scores, against SciPy's filter and the interpolation alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.idw import idw_map
from glance_fast.maps import gaussian, interpolate


@pytest.mark.parametrize("frame", [0, 8])
@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0, 30.0])
def test_an_interpolated_map_is_smoothed_as_scipy_does_it(deviation, frame):
    grid = PatchGrid(48, 72, 32, 8, frame)
    scores = torch.from_numpy(np.random.default_rng(0).gamma(2, 3, (3, len(grid))))
    settings = {"image_size": (48, 72), "patch": 32, "stride": 8, "idw_neighbours": 5, "frame": frame}
    settings["net"] = "surround" if frame else "pyramid"
    config = Config(**settings, smoothing=deviation)
    assert config.grids == (grid,)
    plain = interpolate(scores, grid, Config(**settings, smoothing=0))
    centres = grid.centers_y, grid.centers_x, 48, 72
    expected = idw_map(scores.float().reshape(3, grid.rows, grid.cols), *centres, neighbours=5)
    np.testing.assert_array_equal(plain, expected)
    smooth = gaussian_filter(plain.double().numpy(), (0, deviation, deviation), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(interpolate(scores, grid, config), smooth, rtol=2e-6)
    assert not np.allclose(smooth, plain, rtol=1e-3)


def test_smoothing_keeps_what_is_even_and_does_not_reach_beyond_three_deviations():
    matrix = gaussian(50, 4.0, torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(1), torch.ones(50))
    assert matrix[20, 32] > 0 == matrix[20, 33] and torch.equal(matrix, matrix.flip(0, 1))
