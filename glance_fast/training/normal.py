"""What normal photographs leave behind in a run folder, so that others can join them: ``normal.safetensors``.

All statistics of normality are sums over these residuals. So they are kept as they are, in the half precision
that the sums are made from anyway: whatever is made from them after an update, scores by a whitening that has
not seen the photograph among it, is what all photographs together would have given. A photograph takes 256
bytes a patch and four more: 0.3 MB with the default settings. Sums alone, one set for each of the five parts
that cross-fitting needs, would take as much as 650 photographs, and old photographs could not be scored anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glance_fast.data.files import digest_of, read_notes, stream_tensors
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.run import weights

# Another one where the meaning of the file changes.
FORMAT = 1


class Residuals(NamedTuple):
    """What one scale finds in normal images.

    Attributes
    ----------
    residual : Tensor
        z_l - z_g, half precision [N, P, D], on the CPU.
    distortion : Tensor
        s_DAD, float32 [N, P], on the CPU.
    """

    residual: Tensor
    distortion: Tensor


class Normal(NamedTuple):
    """Normal photographs, as far as statistics need them.

    Attributes
    ----------
    names : tuple of str
        Of the photographs (``glance_fast.training.calibrate.digest``), in ascending order: what is drawn and
        summed does not depend on which of them came first.
    aspects : Tensor
        Width over height of each, float64 [N].
    scales : list of Residuals
        One a scale.
    """

    names: tuple[str, ...]
    aspects: Tensor
    scales: list[Residuals]

    @classmethod
    def empty(cls, model: Glance, names: Sequence[str]) -> Normal:
        """Room for photographs, to be filled in."""
        found = tuple(sorted(names))
        return cls(
            found,
            torch.empty(len(found), dtype=torch.float64),
            [
                Residuals(
                    torch.empty(len(found), len(scale.grid), scale.local.features, dtype=torch.float16),
                    torch.empty(len(found), len(scale.grid)),
                )
                for scale in model.scales
            ],
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the names, by name in the file."""
        found = {"aspects": self.aspects}
        for index, scale in enumerate(self.scales):
            found |= {f"{field}.{index}": tensor for field, tensor in scale._asdict().items()}
        return found


def write_normal(path: Path, model: Glance, normal: Normal) -> None:
    """Write the file.

    Parameters
    ----------
    path : Path
        Of the file.
    model : Glance
        Whose nets the residuals are of.
    normal : Normal
        What to write.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    notes = {"format": FORMAT, "nets": _nets(model), "names": list(normal.names)}
    stream_tensors(path, normal.tensors(), notes)


def read_names(path: Path, model: Glance) -> tuple[str, ...]:
    """Names of the photographs in the file.

    Raises
    ------
    UserError
        It is damaged, or of other nets than the model's.
    """
    try:
        notes = read_notes(path)
        names, nets, version = notes["names"], notes["nets"], notes["format"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error).splitlines()[0] if str(error) else "no notes") from error
    if version != FORMAT:
        raise UserError(f"{path}: not of this version of glance-fast; {_ADVICE}")
    if nets != _nets(model):
        raise UserError(f"{path}: of another model than the one beside it; {_ADVICE}")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or names != sorted(names):
        raise _damaged(path, "its names are no list of names in order")
    return tuple(names)


def read_normal(path: Path, into: Normal, names: Sequence[str]) -> None:
    """Fill in the photographs of a file, one at a time: they are never held twice.

    Parameters
    ----------
    path : Path
        Of the file.
    into : Normal
        Changed in place; all of ``names`` are among its own.
    names : sequence of str
        Those of the file, as ``read_names`` gives them.

    Raises
    ------
    UserError
        It is damaged.
    """
    places, place = [], 0
    for name in names:
        # Both are in order, and a name may stand there twice.
        place = into.names.index(name, place)
        places.append(place)
        place += 1
    try:
        with safe_open(path, "pt") as file:
            for key, tensor in into.tensors().items():
                rows = file.get_slice(key)
                if list(rows.get_shape()) != [len(names), *tensor.shape[1:]]:
                    raise _damaged(path, f"{key} has another shape")
                for index, place in enumerate(places):
                    row = rows[index : index + 1]
                    if row.dtype != tensor.dtype or not row.isfinite().all():
                        raise _damaged(path, f"{key} is not finite, or of another type")
                    tensor[place] = row[0]
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


_ADVICE = "give the photographs that it was trained on as well (`old`), or train again"


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason}); move it away, and {_ADVICE}")


def _nets(model: Glance) -> str:
    """Digest of all weights that residuals and s_DAD are of."""
    statistics = ("residual_mean", "whitening")
    return digest_of({n: t for n, t in weights(model).items() if not n.endswith(statistics)})
