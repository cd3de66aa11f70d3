"""Two things of ``torch.nn`` whose types torch leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def module_list(modules: Iterable[Kind]) -> Sequence[Kind]:
    """An ``nn.ModuleList``; its own type does not say what it lists."""
    return cast(Sequence[Kind], nn.ModuleList(modules))


def channels_last(module: Kind) -> Kind:
    """The module itself, its convolutions' weights channels-last in memory."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, untyped
