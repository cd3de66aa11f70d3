"""The operators: partial convolution of maps, of windows and around a hole, patch scores, maps, ranking.

This folder is imported as ``glance_fast.kernels``; ``setup.py`` maps it there.
"""

if __name__ != "glance_fast.kernels":
    raise ImportError(
        f"this folder is the package glance_fast.kernels, not {__name__!r}: "
        "install the project (pip install -e .) and import glance_fast.kernels"
    )

from glance_fast.kernels.idw import idw_map
from glance_fast.kernels.partial_conv import partial_conv2d
from glance_fast.kernels.patch_score import score_patches
from glance_fast.kernels.surround_conv import surround_conv2d
from glance_fast.kernels.window_conv import WindowedMap, window_conv2d
from glance_fast.kernels.window_sample import window_sample

__all__ = [
    "WindowedMap",
    "idw_map",
    "partial_conv2d",
    "score_patches",
    "surround_conv2d",
    "window_conv2d",
    "window_sample",
]
