"""Small settings and pictures of parts that several tests use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Of a model that trains in seconds: net "surround", four by four patches.
SMALL = {
    "image_size": 64,
    "patch": 32,
    "stride": 16,
    "width": 8,
    "finetune_steps": 2,
    "steps": 6,
    "batch": 4,
    "variants": 8,
    "validation": 0.25,
}
# The same with a masked net, three by three patches.
MASKED = {**SMALL, "net": "pyramid"}


def draw_part(rng: np.random.Generator, size: int = 64, defect: bool = False) -> np.ndarray:
    """A striped plate with a disc: something that has structure, and a hole punched in it as a defect."""
    y, x = np.mgrid[:size, :size]
    plate = 110 + 40 * np.sin(x / 3) + rng.normal(0, 4, (size, size))
    plate[(y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 5) ** 2] = 210
    if defect:
        top, left = rng.integers(4, size - 20, 2)
        plate[top : top + 12, left : left + 12] = 10
    return np.repeat(plate.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def draw_deep_part(rng: np.random.Generator, size: int = 64, defect: bool = False) -> np.ndarray:
    """The same in stored values of 12 bits, uint16 [H, W]."""
    part = draw_part(rng, size, defect)[..., 0].astype(np.uint16) * 16
    return part + rng.integers(0, 16, part.shape).astype(np.uint16)


def write_cifar10(folder: Path, batches: dict[str, tuple[np.ndarray, list[int]]]) -> Path:
    """Binary batches of CIFAR-10: by name, planes uint8 [N, 3072] and labels."""
    folder.mkdir(parents=True)
    for name, (planes, labels) in batches.items():
        records = np.concatenate([np.array(labels, np.uint8)[:, None], planes], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder
