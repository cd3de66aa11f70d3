"""One command as several processes: those that torchrun starts share its work and wait for each other."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from glance_fast.errors import UserError

if TYPE_CHECKING:
    import torch

    from glance_fast.training.parallel import Workers

# One process may have far more to do than another; one that has died is noticed without any limit.
PATIENCE = datetime.timedelta(days=30)
# Seconds that the others leave the first process to say what is wrong.
FIRST_SPEAKS = 2.0


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

        with self.together():
            distributed.barrier(self.group)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What they do with each other; ends this one where another has failed."""
        from torch import distributed

        try:
            yield
        except UserError:
            # Most faults all of them find: the first one says so, and torchrun ends the others meanwhile.
            if self.rank > 0:
                time.sleep(FIRST_SPEAKS)
            raise
        except RuntimeError as error:
            ours = isinstance(error, distributed.DistError) or "gloo" in str(error)
            if self.count == 1 or not ours:
                raise
            if "by peer" in str(error):
                raise AnotherFailed from error
            raise UserError(
                f"the processes of torchrun have lost each other ({error}); `resume=True` goes on"
            ) from error

    def workers(self, device: torch.device) -> Workers:
        """These processes as those of one training on such devices."""
        from torch import distributed

        from glance_fast.training.parallel import ALONE, Workers

        if self.count == 1:
            return ALONE
        tensors = self.group
        if device.type == "cuda":
            tensors = distributed.new_group(backend="nccl", timeout=PATIENCE)
        return Workers(self.rank, self.count, tensors, self.group)

    def device(self, name: str | torch.device) -> str | torch.device:
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
