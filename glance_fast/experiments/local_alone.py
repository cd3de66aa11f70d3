"""A model without its Global-Net: how far each patch lies from the normal ones of its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glance_fast.data.cache import ImageCache
from glance_fast.model import Glance, Scale
from glance_fast.nets.modules import channels_last, module_list
from glance_fast.training.calibrate import calibrate


class LocalScale(Scale):
    """A patch size whose surroundings say nothing: z_g is 0, so that the residual is z_l itself."""

    def features(
        self,
        images: Tensor,
        engine: str,
        limit: int,
        chosen: Sequence[int] | None = None,
        cells: tuple[slice, slice] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z_l and zeros, as ``Scale.features`` has z_l and z_g; Global-Net is not run."""
        local = self.local_features(images).float().flatten(1, 2)
        local = local if chosen is None else local[:, list(chosen)]
        return local, torch.zeros_like(local)


def without_global(
    model: Glance, cache: ImageCache, progress: Callable[[int, int], None] | None = None
) -> Glance:
    """What a model is worth without Global-Net.

    A patch's score is the squared Mahalanobis distance of z_l from its mean on normal images, by the
    covariance of its place in the grid: the residual of a z_g that is 0, whitened and calibrated as the
    residuals of a whole model are. It is whitened also where the model's blend is the paper's, for z_l alone
    has no scale. No distortion score is in it, which would ask Global-Net too. Everything else is the
    model's: Local-Nets, patch sizes and what each counts by, interpolation.

    Parameters
    ----------
    model : Glance
        Trained; it stays as it is.
    cache : ImageCache
        The normal images that it was trained on, of its image size.
    progress : callable, optional
        Called with (images done, images in all).

    Returns
    -------
    Glance
        It scores images as any other, on the device of ``model``.

    Raises
    ------
    UserError
        Memory does not suffice.
    """
    alone = Glance(dataclasses.replace(model.config, blend="calibrated", lambda_s=1.0))
    alone.scales = module_list(LocalScale(alone.config, index) for index in range(len(model.scales)))
    for own, given in zip(alone.scales, model.scales, strict=True):
        own.local.load_state_dict(given.local.state_dict())
    channels_last(alone)
    alone.to(model.device).eval()
    alone.precision, alone.memory_mib = model.precision, model.memory_mib
    weights = [statistics.weight for statistics in model.calibration.scales]
    calibrate(alone, cache, range(len(cache)), progress, weights=weights)
    return alone
