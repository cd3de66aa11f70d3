"""One training as several processes: each computes its share of every batch (data parallelism).

All hold the same weights and draw the same batches. A net sees a share of a batch in each process; what it
says is put together, and from there on all compute the same loss, BatchNorm of the heads included. So the
result is that of one process, but for rounding, whatever their number.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Workers:
    """This process among those of one training; alone unless told otherwise.

    Parameters
    ----------
    rank, count : int
        Its number, from 0, and how many there are.
    tensors : ProcessGroup, optional
        By which they exchange tensors of the device that they compute on.
    control : ProcessGroup, optional
        By which they exchange all else, on the CPU.
    """

    rank: int = 0
    count: int = 1
    tensors: Any = None
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def divided(
        self, function: Callable[..., tuple[Tensor, ...]], *batch: Tensor | np.ndarray
    ) -> tuple[Tensor, ...]:
        """What a function says of a batch, of which each process computes its share.

        Parameters
        ----------
        function : callable
            Of batches to tensors, all with as many items in their first axis. An item of a result depends on
            the same item of the batch alone, or on all of them by ``SyncedBatchNorm``.
        *batch : Tensor or ndarray
            The whole batch, the same in all processes.

        Returns
        -------
        tuple of Tensor
            Of the whole batch, in all processes. Gradients reach the weights through the share of each
            process, times the number of processes: ``average`` makes them those of the batch.
        """
        size = len(batch[0])
        if self.count == 1 or size < self.count:
            return function(*batch)
        share = slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)
        found = function(*(part[share] for part in batch))
        return tuple(_PutTogether.apply(part, share, size, self) for part in found)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the mean of their gradients."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat, group=self.tensors)
        parts = (flat / self.count).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return here
        found = torch.tensor([int(here)])
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def of_first(self, value: Any) -> Any:
        """What the first process gives, in all of them; tensors are on the CPU then."""
        if self.count == 1:
            return value
        buffer = io.BytesIO()
        if self.first:
            torch.save(value, buffer)
        told = [buffer.getvalue()]
        distributed.broadcast_object_list(told, group_src=0, group=self.control)
        return value if self.first else torch.load(io.BytesIO(told[0]), "cpu", weights_only=True)

    @contextmanager
    def synced(self, *nets: nn.Module) -> Iterator[None]:
        """Have every BatchNorm of nets whose batch is divided see the whole batch.

        ``torch.nn.SyncBatchNorm`` does so on GPUs alone.
        """
        if self.count == 1:
            yield
            return
        replaced = [
            (module, name, child)
            for net in nets
            for module in net.modules()
            for name, child in module.named_children()
            if isinstance(child, _BatchNorm)
        ]
        for module, name, child in replaced:
            setattr(module, name, SyncedBatchNorm(child, self))
        try:
            yield
        finally:
            for module, name, child in replaced:
                # Weights and running statistics are the same tensors.
                child.train(getattr(module, name).training)
                setattr(module, name, child)


ALONE = Workers()


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the shares of all processes; its weights and running statistics are another's.

    Parameters
    ----------
    norm : BatchNorm1d or BatchNorm2d
        In whose place it stands.
    workers : Workers
        Who has the other shares.
    """

    def __init__(self, norm: _BatchNorm, workers: Workers) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers, self.workers = norm._parameters, norm._buffers, workers
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"at least two dimensions are needed, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm, of this process' share [N, C, ...] of a batch."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        values, axes = input.float(), [0, *range(2, input.dim())]
        own = values.new_tensor([input.numel() // input.shape[1]])
        *sums, count = _Sum.apply(torch.cat([values.sum(axes), own]), self.workers).split([input.shape[1], 1])
        shape = (1, -1, *[1] * (input.dim() - 2))
        mean = sums[0] / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes), self.workers) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        gain = self.weight * (variance + self.eps).rsqrt()
        return (centred * gain.view(shape) + self.bias.view(shape)).to(input.dtype)


class _PutTogether(torch.autograd.Function):
    """Results of all processes' shares, one after another."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, share: slice, size: int, workers: Workers) -> Tensor:
        ctx.share, ctx.count = share, workers.count
        whole = found.new_zeros(size, *found.shape[1:])
        whole[share] = found
        # Not gathered: shares may differ in size. Sums with zeros are exact.
        distributed.all_reduce(whole, group=workers.tensors)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient[ctx.share] * ctx.count, None, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers
        total = value.clone()
        distributed.all_reduce(total, group=workers.tensors)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        distributed.all_reduce(total, group=ctx.workers.tensors)
        return total, None
