"""Files of more than 8 bits, made byte by byte where no library at hand writes them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

# How Adam7 takes an image apart: first row and column, and the steps between them.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def noise(channels: int, bits: int = 16, size: tuple[int, int] = (23, 17), seed: int = 0) -> np.ndarray:
    """Stored values, uint16 [H, W, channels], or [H, W] of one."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (*size, channels)).astype(np.uint16)
    return values[..., 0] if channels == 1 else values


def chunk(kind: bytes, body: bytes) -> bytes:
    """A piece of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG file of 16 bits."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    head = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, int(interlaced))
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def lzw(data: bytes) -> bytes:
    """Data as TIFF's LZW has it: every byte as a code of nine bits, the table cleared before it grows."""
    codes = [code for i in range(0, len(data), 250) for code in (256, *data[i : i + 250])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(data: bytes) -> bytes:
    """Data as PackBits has it, nothing repeated."""
    parts = (data[i : i + 128] for i in range(0, len(data), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def tiff(data: bytes, tags: dict[int, int | tuple[int, ...]], end: str = "<") -> bytes:
    """A TIFF file of one strip, which holds these bytes; its place and length are added to the tags."""
    tags = {**tags, 273: 0, 278: tags[257], 279: len(data)}
    # After the header, the directory, and where there is no next one.
    after = 8 + 2 + 12 * len(tags) + 4
    entries, values = [], b""
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{end}{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            values, packed = values + packed, struct.pack(f"{end}I", after + len(values))
        entries.append((tag, kind, len(numbers), packed.ljust(4, b"\0")))
    strip = struct.pack(f"{end}I", after + len(values))
    directory = b"".join(
        struct.pack(f"{end}HHI", tag, kind, count) + (strip if tag == 273 else packed)
        for tag, kind, count, packed in entries
    )
    head = (b"II" if end == "<" else b"MM") + struct.pack(f"{end}HIH", 42, 8, len(entries))
    return head + directory + bytes(4) + values + data


def write(path: Path, data: bytes) -> Path:
    """Write a file and give its path."""
    path.write_bytes(data)
    return path
