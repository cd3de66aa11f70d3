"""Scores do not drift: drawn images by the weights that ship, beside the numbers kept in ``golden.json``."""

import json

import golden
import numpy as np
import pytest


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_scores_are_those_that_were_kept(name):
    kept, found = json.loads(golden.FILE.read_text(encoding="utf-8"))[name], golden.compute(name)
    assert found.keys() == kept.keys()
    for what, values in found.items():
        # Relative to the largest: some are differences of large numbers.
        limit = 1e-4 * np.abs(kept[what]).max()
        np.testing.assert_allclose(
            values, kept[what], rtol=0, atol=limit, err_msg=f"{what}; meant? python tests/golden.py"
        )


def test_the_kept_numbers_are_of_all_settings_and_tell_something():
    kept = json.loads(golden.FILE.read_text(encoding="utf-8"))
    assert kept.keys() == golden.SETTINGS.keys()
    for found in kept.values():
        assert all(np.isfinite(values).all() for values in found.values())
        for what in found.keys() - {"threshold"}:
            assert np.ptp(found[what]) > 1e-2 * np.abs(found[what]).max(), what
