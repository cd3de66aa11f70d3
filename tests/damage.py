"""Files damaged by chance, and what must come of reading one: a result, or one line that says which file."""

from __future__ import annotations

import numpy as np

from glance_fast.errors import UserError

# Characters of a message, beside the names in it.
LONGEST = 1500


def damaged(data: bytes, seed: int, each: int, within: int | None = None):
    """Copies of a file with bits flipped, cut off, zeroed, doubled and filled with noise: so many of each.

    Parameters
    ----------
    within : int, optional
        Bytes from the beginning to do it to; all of them if not given.
    """
    rng = np.random.default_rng(seed)
    most = min(within or len(data), len(data))
    for _ in range(each):
        flipped = bytearray(data)
        for place in rng.integers(0, most, rng.integers(1, 5)):
            flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
        first, last = sorted(int(end) for end in rng.integers(0, most + 1, 2))
        yield data[:last]
        yield data[:first] + bytes(last - first) + data[last:]
        yield data[:last] + data[first:]
        yield data[:first] + rng.bytes(last - first) + data[last:]


class Readings:
    """Counts what was read and what was refused; anything but a refusal in one line fails the test."""

    def __init__(self) -> None:
        self.read = self.refused = 0

    def __call__(self, name, read, *arguments, **more) -> str:
        """Read; gives what was said, which must hold ``name``, or nothing."""
        try:
            read(*arguments, **more)
        except UserError as error:
            said = str(error)
            assert str(name) in said and len(said) < LONGEST and said.isprintable(), said
            self.refused += 1
            return said
        self.read += 1
        return ""

    def tell(self, kind: str) -> None:
        """Print the numbers; ``pytest -s`` shows them."""
        print(f"\n{kind}: {self.read + self.refused} bad inputs, {self.refused} refused, {self.read} read")
