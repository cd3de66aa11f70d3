"""Ground truth at another size."""

import numpy as np
from scipy import ndimage

from glance_fast.evaluation.truth import resize_truth


def test_resized_masks_keep_every_region():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 300), bool)
    for _ in range(60):
        y, x = rng.integers(0, 199), rng.integers(0, 299)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
    resized, kept = resize_truth(mask, (40, 50))
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    assert kept > 0
    for number in range(1, count + 1):
        y, x = np.nonzero(regions == number)
        assert resized[y * 40 // 200, x * 50 // 300].any()
    # Apart from what was put back, it is the plain rule.
    share = mask.reshape(40, 5, 50, 6).mean((1, 3))
    assert (resized & ~(share > 0.5)).sum() <= kept and (resized[share > 0.5]).all()
    for same in (mask, ~mask & False):
        again, kept = resize_truth(same, mask.shape)
        assert (again == same).all() and kept == 0
