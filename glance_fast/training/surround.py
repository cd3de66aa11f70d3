"""Global-Net over Local-Net's features, and the distortion head, trained on features computed once (Eq. 10).

Global-Net sees surroundings of clean and of stained variants alike, and is to say in both cases what
Local-Net says of the clean patch: a defect that reaches beyond its patch must not predict itself. The
distortion head learns from two kinds of stained patches. Some lie in stains of whole images, large ones
among them, with surroundings that are stained too: most of these lie wholly within a stain, where nothing
shows it. Others are tiles, each with a small stain of its own, as the paper has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.data.depth import Levels
from glance_fast.data.stains import stain
from glance_fast.geometry import PatchGrid
from glance_fast.model import Scale
from glance_fast.nets.heads import distortion_loss, inconsistency_loss
from glance_fast.training.explained import Explained
from glance_fast.training.loop import Stage
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.sampling import draw_indices, step_generator
from glance_fast.training.variants import Variants

WEIGHT_DECAY = 1e-2
# Noise on the features of the surrounding, as a share of their deviation.
NOISE = 0.1
# Cells between those that a step computes: neighbours say nearly the same.
EVERY = 2
# Patches of each kind that the distortion head sees a step.
PATCHES = 1500
AT_ONCE = 8
# Tiles that are stained at a time.
TILES_AT_ONCE = 512
# Share of a grid's sides that a transplanted box has at most.
MOST_TRANSPLANTED = 0.7
# A patch is clean, or its middle is stained, or only its edge: neither.
CLEAN, STAINED, NEITHER = 0, 1, 2
# Pixels of a patch's middle, half as wide, of which more must be stained; for a patch of 32.
LEAST = 5


@dataclass(frozen=True)
class Features:
    """Local-Net's features of variants.

    Attributes
    ----------
    clean, stained : Tensor
        float16 [N, rows, cols, D].
    kinds : Tensor
        int8 [N, rows, cols]: whether a patch is CLEAN, STAINED or NEITHER in ``stained``.
    tiles : Tensor
        float16 [N, T, D], of patches that have a stain of their own each.
    cells : Tensor
        Int64 [N, T, 2], (row, column) of the tiles in the grid.
    belongs : Tensor or None
        Bool [N, rows, cols]: whether a patch belongs to the region of interest; None where all count. The
        others are surroundings, and nothing is learned of them.
    """

    clean: Tensor
    stained: Tensor
    kinds: Tensor
    tiles: Tensor
    cells: Tensor
    belongs: Tensor | None = None


def features_of(
    scale: Scale,
    variants: Variants,
    seed: int,
    bf16: bool,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> Features:
    """Local-Net's features of all patches of variants, and of tiles with stains.

    Parameters
    ----------
    scale : Scale
        Local-Net and the grid.
    variants : Variants
    seed : int
        Of the tiles and their stains.
    bf16 : bool
        Whether Local-Net computes in bfloat16.
    progress : callable, optional
        Called with (variants done, variants in all).
    workers : Workers
        Who shares the work.
    """
    generator = step_generator(seed, f"tiles of {scale.grid.patch}", 0)

    def features(images: Levels) -> Tensor:
        (found,) = workers.divided(lambda share: (local_features(scale, share, bf16).half(),), images)
        return found.cpu()

    parts = []
    for start in range(0, len(variants), AT_ONCE):
        clean, stained = (v[start : start + AT_ONCE] for v in (variants.clean, variants.stained))
        tiled, cells = stain_tiles(clean, scale.grid, generator)
        places = torch.arange(len(cells))[:, None], cells[..., 0], cells[..., 1]
        parts.append((features(clean), features(stained), features(tiled)[places], cells))
        if progress:
            progress(start + len(clean), len(variants))
    of_clean, of_stained, of_tiles, places_of_tiles = map(torch.cat, zip(*parts, strict=True))
    kinds, belongs = patch_kinds(variants.masks, scale.grid), None
    if variants.inside is not None:
        belongs = torch.zeros(len(variants), len(scale.grid), dtype=torch.bool)
        for patches, inside in zip(belongs, variants.inside, strict=True):
            patches[scale.grid.patches_of(inside)] = True
        belongs = belongs.unflatten(1, (scale.grid.rows, scale.grid.cols))
        kinds[~belongs] = NEITHER
    return Features(of_clean, of_stained, kinds, of_tiles, places_of_tiles, belongs)


def stain_tiles(images: Levels, grid: PatchGrid, generator: torch.Generator) -> tuple[Levels, Tensor]:
    """Images laid out with tiles that are patches of the grid, each with a stain of its own.

    Parameters
    ----------
    images : ndarray, ``Levels`` [B, H, W, 3]
    grid : PatchGrid
    generator : torch.Generator
        Of where the tiles of each image begin, and of the stains.

    Returns
    -------
    images : ndarray, ``Levels`` [B, H, W, 3]
        Copies. What Local-Net says of a tile depends on its own pixels alone, and so on its stain alone.
    cells : Tensor
        Int64 [B, T, 2], (row, column) of the tiles; T is 0 where no patch lies wholly within the image.
    """
    side, step = grid.patch, -(-grid.patch // grid.stride)
    first = -(-grid.frame // grid.stride)
    # Tiles lie within the image: what is mirrored beyond it would show a stain twice.
    room = [(size - side + grid.frame) // grid.stride - first + 1 for size in (grid.height, grid.width)]
    starts = [min(step, max(r, 0)) for r in room]
    counts = [-(-(r - s + 1) // step) if r > 0 else 0 for r, s in zip(room, starts, strict=True)]
    out = images.copy()
    if not min(counts):
        return out, torch.zeros(len(images), 0, 2, dtype=torch.int64)
    begin = torch.stack([torch.randint(0, s, (len(images),), generator=generator) for s in starts], 1)
    lattice = torch.cartesian_prod(*(step * torch.arange(count) for count in counts)).reshape(-1, 2)
    cells = first + begin[:, None] + lattice
    corners = (cells * grid.stride - grid.frame).tolist()
    places = [
        (number, slice(top, top + side), slice(left, left + side))
        for number, tiles in enumerate(corners)
        for top, left in tiles
    ]
    # Two at least: stains take pieces of other tiles.
    for part in np.array_split(np.arange(len(places)), max(len(places) // TILES_AT_ONCE, 1)):
        clean = torch.from_numpy(np.stack([images[places[i]] for i in part])).permute(0, 3, 1, 2)
        stained = stain(clean.float(), generator) if len(part) > 1 else clean.float()
        for i, tile in zip(part, stained.clamp(0, 255).permute(0, 2, 3, 1), strict=True):
            # Rounded where pixels are whole numbers.
            out[places[i]] = (tile.round() if out.dtype == np.uint8 else tile).numpy()
    return out, cells


@torch.inference_mode()
def local_features(scale: Scale, images: Levels, bf16: bool) -> Tensor:
    """z_l of images, ``Levels`` [B, H, W, 3], float32 [B, rows, cols, D]."""
    device = next(scale.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return scale.local_features(torch.from_numpy(images).to(device)).float()


def patch_kinds(masks: NDArray[np.bool_], grid: PatchGrid) -> Tensor:
    """What every patch is by the mask of its image.

    Parameters
    ----------
    masks : ndarray, bool [N, H, W]
        Stained pixels.
    grid : PatchGrid

    Returns
    -------
    Tensor
        int8 [N, rows, cols].
    """
    mirrored = np.pad(masks, ((0, 0), *((grid.frame,) * 2,) * 2), mode="symmetric")
    mask = torch.from_numpy(mirrored).float()[:, None]
    anywhere = F.max_pool2d(mask, grid.patch, grid.stride)[:, 0]
    quarter = grid.patch // 4
    middle = mask[:, :, quarter : mask.shape[2] - quarter, quarter : mask.shape[3] - quarter]
    side = grid.patch - 2 * quarter
    stained = F.avg_pool2d(middle, side, grid.stride)[:, 0] * side**2 > LEAST * grid.patch / 32
    kinds = torch.full(anywhere.shape, NEITHER, dtype=torch.int8)
    kinds[anywhere == 0] = CLEAN
    kinds[stained] = STAINED
    return kinds


def surround_stage(
    name: str,
    scale: Scale,
    features: Features,
    held_out: Features,
    config: Config,
    bf16: bool,
    workers: Workers = ALONE,
) -> Stage:
    """The stage that trains Global-Net and the distortion head of one scale of net "surround"."""
    device = next(scale.parameters()).device
    deviation = features.clean.float().flatten(0, 2).std(0).to(device)
    variance = float(deviation.square().mean())
    net, head = scale.global_net, scale.distortion

    def on_device(values: Tensor, indices: NDArray[np.integer]) -> Tensor:
        return values[torch.from_numpy(indices)].to(device).float()

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(config.seed, name, number)
        indices = draw_indices(len(features.clean), config.batch, generator)
        clean, stained = on_device(features.clean, indices), on_device(features.stained, indices)
        half = config.batch // 2
        # The first half shows the surrounding with its stains, some of it of other images altogether.
        context = torch.cat([transplanted(stained[:half], clean[half:], generator), clean[half:]])
        noise = torch.randn(context.shape, generator=generator).to(device)
        y, x = torch.randint(0, EVERY, (2,), generator=generator).tolist()
        tiles = torch.from_numpy(indices)
        tiles, cells = features.tiles[tiles], features.cells[tiles]
        # Those whose z_g is computed.
        wanted = (cells % EVERY == torch.tensor([y, x])).all(-1)
        belongs = None if features.belongs is None else features.belongs[torch.from_numpy(indices)]
        if belongs is not None:
            wanted &= belongs[torch.arange(len(cells))[:, None], cells[..., 0], cells[..., 1]]
            belongs = belongs[:, y::EVERY, x::EVERY]
        image, tile = wanted.nonzero(as_tuple=True)
        cells = cells[image, tile] // EVERY
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            (z_g,) = workers.divided(
                lambda share: (net(share, EVERY, (y, x)).float(),), context + NOISE * deviation * noise
            )
        clean, stained = (t[:, y::EVERY, x::EVERY] for t in (clean, stained))
        inconsistency = inconsistency_loss(*_of(belongs, clean, z_g))
        # Patches in the surrounding that z_g was told from, and stained ones in a clean surrounding.
        z = torch.cat([stained[:half], clean[half:], stained[half:]]).flatten(0, 2)
        told = torch.cat([z_g, z_g[half:]]).flatten(0, 2)
        kinds = features.kinds[torch.from_numpy(indices)][:, y::EVERY, x::EVERY]
        all_clean = torch.full_like(kinds[half:], CLEAN)
        if belongs is not None:
            all_clean[~belongs[half:]] = NEITHER
        kinds = torch.cat([kinds[:half], all_clean, kinds[half:]]).flatten()
        chosen = draw_pairs(kinds, PATCHES, generator).to(device)
        place = image.to(device), *cells.to(device).unbind(1)
        own = torch.cat([clean[place], tiles[image, tile].to(device).float()])
        distortion = z_g.new_zeros(())
        if len(chosen) + len(own):
            # One batch for all: BatchNorm must not tell them apart by whose batch it is.
            pairs = torch.cat([z[chosen], own]), torch.cat([told[chosen], z_g[place], z_g[place]])
            both = head(*pairs).split([len(chosen), len(own)])
            losses = [distortion_loss(*logits.chunk(2)) for logits in both if len(logits)]
            distortion = torch.stack(losses).mean()
        # In deviations of z_l: what a patch's features vary by differs from one category to the next.
        loss = inconsistency / variance + config.lambda_t * distortion
        return loss, {
            "inconsistency": float(inconsistency.detach()),
            "distortion": float(distortion.detach()),
        }

    def validate() -> dict[str, float]:
        parts = []
        for start in range(0, len(held_out.clean), AT_ONCE):
            here = np.arange(start, min(start + AT_ONCE, len(held_out.clean)))
            clean, stained = on_device(held_out.clean, here), on_device(held_out.stained, here)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                z_g, z_g_stained = net(clean).float(), net(stained).float()
            parts.append((clean, z_g, head(clean, z_g), head(stained, z_g_stained)))
        z, z_g, logits, logits_stained = (torch.cat(part) for part in zip(*parts, strict=True))
        explained = Explained()
        counted = _of(held_out.belongs, z, z_g)
        explained.add(*counted)
        found = {"held_out_loss": float(inconsistency_loss(*counted)), "r2": explained.r2}
        middle = (held_out.kinds == STAINED).to(device)
        if middle.any():
            # The same patches, clean and stained.
            found["held_out_distortion"] = float(distortion_loss(logits[middle], logits_stained[middle]))
        return found

    modules: dict[str, nn.Module] = {"global": net, "distortion": head}
    parameters = [p for module in modules.values() for p in module.parameters()]
    groups = [{"params": parameters, "lr": config.learning_rate, "weight_decay": WEIGHT_DECAY}]
    return Stage(name, config.steps, modules, groups, step, config.batch, validate, divided=(net,))


def _of(belongs: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
    """Of values [B, rows, cols, D], those of patches that belong to the region, [n, D]; n is 1 at least.

    Where none does, for a step computes every second cell, the first is a zero that has gradients.
    """
    if belongs is None:
        return values
    belongs = belongs.to(values[0].device)
    if not belongs.any():
        return tuple(0 * value[:1, 0, 0] for value in values)
    return tuple(value[belongs] for value in values)


def transplanted(local: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Features with a box of another image's, from another place, in every second image on average.

    A part that is missing or lies in a wrong place changes more of a surrounding than stains do.

    Parameters
    ----------
    local, others : Tensor
        [B, rows, cols, D], and the same of other images, one at least.
    """
    out = local.clone()
    sides = torch.tensor(local.shape[1:3])
    for image in out:
        if torch.rand((), generator=generator) < 0.5:
            continue
        share = MOST_TRANSPLANTED * torch.rand(2, generator=generator)
        size = (share * sides).long().clamp_min(1)
        top, left = ((sides - size + 1) * torch.rand(2, generator=generator)).long().tolist()
        from_y, from_x = ((sides - size + 1) * torch.rand(2, generator=generator)).long().tolist()
        donor = others[int(torch.randint(0, len(others), (), generator=generator))]
        height, width = size.tolist()
        piece = donor[from_y : from_y + height, from_x : from_x + width]
        image[top : top + height, left : left + width] = piece
    return out


def draw_pairs(kinds: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Places of clean patches, then of as many stained ones: int64 [2 * n], n at most ``most``."""
    places = [(kinds == kind).nonzero()[:, 0] for kind in (CLEAN, STAINED)]
    count = min(most, *map(len, places))
    if count < 2:
        # BatchNorm needs more than one of a kind.
        return places[0][:0]
    return torch.cat([p[torch.randperm(len(p), generator=generator)[:count]] for p in places])
