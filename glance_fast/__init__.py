"""Anomaly localisation from photographs of good parts alone.

The method of *Glancing at the Patch* (CVPR 2021): what a patch looks like is compared with what its
surrounding says it should look like.
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from glance_fast.errors import ImageError, UserError

if TYPE_CHECKING:
    from glance_fast.config import Config
    from glance_fast.jobs.train import fit
    from glance_fast.model import Glance, ScoreResult
    from glance_fast.run import load

__all__ = ["Config", "Glance", "ImageError", "ScoreResult", "UserError", "fit", "load"]
__version__ = version("glance-fast")
# Silent unless the program that uses us wants to hear it.
logging.getLogger(__name__).addHandler(logging.NullHandler())
# Imported when first asked for: they bring PyTorch, which takes seconds.
_LAZY = {
    "Config": "config",
    "Glance": "model",
    "ScoreResult": "model",
    "fit": "jobs.train",
    "load": "run",
}


_MODULES = ("config", "evaluation", "kernels")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
