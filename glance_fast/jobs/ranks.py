"""One command as several processes: those that torchrun starts share its work and wait for each other."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from glance_fast.errors import UserError

# One process may have far more to do than another; one that has died is noticed without any limit.
PATIENCE = datetime.timedelta(days=30)


# How often they have met; the same in all of them.
_TIMES = itertools.count()


class AnotherFailed(Exception):
    """Another process has ended, and said why."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of one command; alone unless torchrun started it.

    Parameters
    ----------
    rank, count : int
        Its number, from 0, and how many there are.
    local_rank, local_count : int
        The same on this machine.
    launched : bool
        Whether torchrun started it.
    group : ProcessGroup, optional
        Those that wait for each other; all if not given.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    launched: bool = False
    group: Any = None

    def wait(self) -> None:
        """Wait until all processes are here; ends this one where another has failed."""
        if self.count == 1:
            return
        from torch import distributed

        try:
            distributed.barrier(self.group)
        except RuntimeError as error:
            if "by peer" in str(error):
                raise AnotherFailed from error
            raise UserError(
                f"the processes of torchrun have lost each other ({error}); `resume=True` goes on"
            ) from error

    def device(self, name: str) -> str:
        """What ``device`` means here: each process of a machine takes a CUDA device of its own."""
        from glance_fast.device import device_of_process

        return device_of_process(name, self.local_rank, self.local_count) if self.count > 1 else name


def this_process() -> Ranks:
    """What the environment says of this process."""
    # As torch.distributed.is_torchelastic_launched has it, without waiting for PyTorch.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names)
    return Ranks(rank, count, local_rank, local_count, launched=True)


@cache
def _meeting_place() -> Any:
    """Where the processes find each other, kept as long as this one lives.

    One made anew each time could be the old one of a first process that has not closed it yet, and the
    others would wait there for ever.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=PATIENCE)))
    return store


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes of this command; they can wait for each other as long as the context lasts."""
    here = this_process()
    if here.count == 1:
        yield here
        return
    from torch import distributed

    if distributed.is_initialized():
        # The caller's own may be of another backend, and stays.
        here = replace(here, group=distributed.new_group(backend="gloo", timeout=PATIENCE))
    else:
        met = distributed.PrefixStore(f"glance-fast/{next(_TIMES)}", _meeting_place())
        distributed.init_process_group(
            "gloo", store=met, rank=here.rank, world_size=here.count, timeout=PATIENCE
        )
    yield here
    # Only now: after an error, it would be one more thing to wait for.
    distributed.destroy_process_group(here.group)
