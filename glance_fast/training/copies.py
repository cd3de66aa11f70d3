"""What the stages of a training learn from: copies of the images, each kind made when first asked for."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.training.finetune import MOST, Targets
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.symmetry import Symmetry
from glance_fast.training.variants import Variants, make_variants, number_of_variants


class Copies:
    """Augmented copies of the images that are trained on, and of those held out.

    Parameters
    ----------
    cache : ImageCache
    train, held_out : ndarray of int
        Indices of the images to train on, and of those held out.
    config : Config
        Settings.
    symmetry : Symmetry
        Turns and mirroring that the category allows.
    reporter : Reporter
        Shows progress.
    inside : ndarray, optional
        bool [H, W], the region of interest of all images.
    workers : Workers
        Who shares the work.
    """

    def __init__(
        self,
        cache: ImageCache,
        train: np.ndarray,
        held_out: np.ndarray,
        config: Config,
        symmetry: Symmetry,
        reporter: Reporter,
        inside: np.ndarray | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.cache, self.train, self.held_out = cache, train, held_out
        self.config, self.symmetry, self.reporter = config, symmetry, reporter
        self.inside, self.workers = inside, workers

    @cached_property
    def trained(self) -> Variants:
        """Of the images to train on, augmented as the category allows."""
        count = number_of_variants(len(self.train), self.config, 4 if self.cache.white else 1)
        if count < len(self.train):
            limit = self.config.cache_mib
            self.reporter.say(
                f"{count} augmented copies of {len(self.train)} images: cache_mib = {limit} holds no more"
            )
        with self.reporter.task("augmenting", count) as advance:
            return make_variants(
                self.cache,
                self.train,
                count,
                self.config,
                self.symmetry,
                "variants",
                advance,
                self.inside,
            )

    @cached_property
    def still(self) -> Variants:
        """Of the images held out, as they are, and stained."""
        config = dataclasses.replace(self.config, shift=0, brightness=0.0)
        count, still = len(self.held_out), Symmetry(False, False)
        return make_variants(self.cache, self.held_out, count, config, still, "held out", inside=self.inside)

    def targets(self, teacher: Teacher, bf16: bool) -> Targets:
        """What a teacher says of the copies that are trained on, and of stained ones.

        Parameters
        ----------
        teacher : Teacher
            On the device to compute on.
        bf16 : bool
            Whether it runs in bfloat16.
        """
        # Stained copies show what the category does not: they may be turned, too, whatever it allows.
        square = self.config.image_size[0] == self.config.image_size[1]
        anyhow = Symmetry(turns=square, mirrors=True)
        clean = self.trained.clean
        count = min(len(clean), MOST)
        turned = make_variants(self.cache, self.train, count, self.config, anyhow, "turned variants")
        with self.reporter.task("asking the teacher", None) as advance:
            limit = self.config.cache_mib << 19
            return Targets(teacher, clean, turned.stained, limit, bf16, advance, self.workers)
