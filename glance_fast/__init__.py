"""Anomaly localisation from photographs of good parts alone.

The method of *Glancing at the Patch* (CVPR 2021): what a patch looks like is compared with what its
surrounding says it should look like.
"""

from importlib.metadata import version

from glance_fast.checkpoint import load
from glance_fast.config import Config
from glance_fast.errors import ImageError, UserError
from glance_fast.model import Glance, ScoreResult

__all__ = ["Config", "Glance", "ImageError", "ScoreResult", "UserError", "load"]
__version__ = version("glance-fast")
