"""Tiny data sets in the layouts that people have, as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from samples import draw_part

# Of a picture's defect: the rectangle that is marked.
BOX = (slice(20, 32), slice(8, 24))


def save(path: Path, values: np.ndarray) -> Path:
    """Write an image, or a mask of one channel as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def photograph(path: Path, defect: bool = False) -> Path:
    """A part of 64 by 64 pixels, with a dark box where it has a defect."""
    # What it shows follows from its name, so that no two are alike.
    image = draw_part(np.random.default_rng(list("/".join(path.parts[-3:]).encode())))
    if defect:
        image[BOX] = 10
    return save(path, image)


def box(value: int = 255, size: tuple[int, int] = (64, 64), part: tuple[slice, slice] = BOX) -> np.ndarray:
    """A mask of the defect."""
    mask = np.zeros(size, np.uint8)
    mask[part] = value
    return mask


def mvtec_ad(data: Path, train: int = 2, good: int = 2, cut: int = 2) -> Path:
    """A category in MVTec AD's layout."""
    for i in range(train):
        photograph(data / f"train/good/{i:03}.png")
    for i in range(good):
        photograph(data / f"test/good/{i:03}.png")
    for i in range(cut):
        photograph(data / f"test/cut/{i:03}.png", defect=True)
        save(data / f"ground_truth/cut/{i:03}_mask.png", box())
    return data


def mvtec_ad2(data: Path, private: bool = True) -> Path:
    """A category in MVTec AD 2's layout."""
    for i in range(2):
        photograph(data / f"train/good/{i:03}_regular.png")
        photograph(data / f"validation/good/{i:03}_regular.png")
        photograph(data / f"test_public/good/{i:03}_regular.png")
        photograph(data / f"test_public/bad/{i:03}_regular.png", defect=True)
        save(data / f"test_public/ground_truth/bad/{i:03}_regular_mask.png", box())
        if private:
            photograph(data / f"test_private/{i:03}_regular.png", defect=bool(i))
            photograph(data / f"test_private_mixed/{i:03}_mixed.png", defect=bool(i))
    return data


LOCO_CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 30, "relative_saturation": False},
    {"defect_name": "dirt", "pixel_value": 254, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "swap", "pixel_value": 253, "saturation_threshold": 0.5, "relative_saturation": True},
]


def mvtec_loco(data: Path) -> Path:
    """A category in MVTec LOCO's layout; the second logical anomaly has two defects."""
    for i in range(2):
        photograph(data / f"train/good/{i:03}.png")
        photograph(data / f"validation/good/{i:03}.png")
        photograph(data / f"test/good/{i:03}.png")
        photograph(data / f"test/logical_anomalies/{i:03}.png", defect=True)
        save(data / f"ground_truth/logical_anomalies/{i:03}/000.png", box(255))
        photograph(data / f"test/structural_anomalies/{i:03}.png", defect=True)
        save(data / f"ground_truth/structural_anomalies/{i:03}/000.png", box(254))
    # Another defect that overlaps the first.
    save(data / "ground_truth/logical_anomalies/001/001.png", box(253, part=(slice(28, 40), slice(8, 24))))
    (data / "defects_config.json").write_text(json.dumps(LOCO_CONFIG))
    return data


def visa(root: Path, *objects: str) -> Path:
    """VisA with its table; gives the folder of the first object. Images are JPEG, masks hold classes."""
    lines = ["object,split,label,image,mask"]
    for name in objects:
        for i in range(4):
            image = f"{name}/Data/Images/Normal/{i:04}.JPG"
            photograph(root / image)
            lines.append(f"{name},{'train' if i < 2 else 'test'},normal,{image},")
        for i in range(2):
            image, mask = f"{name}/Data/Images/Anomaly/{i:03}.JPG", f"{name}/Data/Masks/Anomaly/{i:03}.png"
            photograph(root / image, defect=True)
            save(root / mask, box(3 + i))
            lines.append(f"{name},test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return root / objects[0]


def btad(data: Path, suffix: str = ".bmp") -> Path:
    """A category in BTAD's layout."""
    for i in range(2):
        photograph(data / f"train/ok/{i:04}.bmp")
        photograph(data / f"test/ok/{i:04}.bmp")
        photograph(data / f"test/ko/{i:04}.bmp", defect=True)
        save(data / f"ground_truth/ko/{i:04}{suffix}", box())
    return data


def sorted_folder(data: Path, *kinds: str) -> Path:
    """A plain folder of sorted photographs, without masks."""
    for kind in kinds:
        for i in range(2):
            photograph(data / kind / f"{i}.png", defect=kind not in ("good", "ok", "normal", "Normal"))
    return data


def table(path: Path, header: str, *lines: str) -> Path:
    """A CSV file beside photographs 0.png to 3.png of good parts, 4.png and 5.png of cut ones, and masks."""
    for i in range(6):
        photograph(path.parent / f"photos/{i}.png", defect=i > 3)
        if i > 3:
            save(path.parent / f"photos/mask{i}.png", box())
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


TABLE = (
    "path,label,mask,split,remark",
    "photos/0.png,good,,train,",
    "photos/1.png,OK,,train,of monday",
    "photos/2.png,normal,,test,",
    "photos/3.png,0,,test,",
    "photos/4.png,cut,photos/mask4.png,test,",
    "photos/5.png,1,photos/mask5.png,test,",
)
