"""Global-Net over Local-Net's features: z_g of every patch of the grid in one pass (Eq. 6).

    v(q)   = ReLU(W_v z_l(q) + b_v)                               pointwise
    h(p)   = ReLU(Σ_{o in Ω} W_o v(p + o) M_p(p + o) · |Ω| / Σ M_p + b + W_m · mean of v(q) where M_p(q) = 1)
    z_g(p) = MLP([h(p), p's position])                            pointwise

M_p(q) is 1 where patch q shares no pixel with p. The sum is Eq. 5 with the hole in the middle of the kernel:
Ω is a ring of cells around the hole, and eight cells each at a few distances. Nothing before it mixes places
and nothing after it does, so that no pixel of p reaches z_g(p).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.geometry import PatchGrid
from glance_fast.kernels.surround_conv import surround_conv2d

# Cells on each side of the hole that the ring is wide.
RING = 2
# Distances of the far cells, in cells; those that the ring covers are left out.
FAR = (8, 12)
FREQUENCIES = 4


class SurroundNet(nn.Module):
    """Features of patches from those of the patches around them.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    features : int
        D.
    width : int
        Channels of v; h has twice as many.
    """

    position: Tensor
    rows_seen: Tensor
    cols_seen: Tensor

    def __init__(self, grid: PatchGrid, features: int, width: int = 64) -> None:
        super().__init__()
        self.grid, self.features = grid, features
        self.hole = grid.hidden
        self.kernel = self.hole + 2 * RING
        self.far = tuple(d for d in FAR if d > self.kernel // 2)
        ring, outputs = self.kernel**2 - self.hole**2, 2 * width
        places = ring + 8 * len(self.far)
        deviation = math.sqrt(2 / (width * places))
        self.value = nn.Linear(features, width)
        self.ring = nn.Parameter(deviation * torch.randn(outputs, width, ring))
        self.beyond = nn.Parameter(deviation * torch.randn(outputs, width, places - ring))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.mean = nn.Linear(width, outputs, bias=False)
        hidden = 2 * outputs
        inputs = outputs + 4 * FREQUENCIES
        self.head = nn.Sequential(
            nn.BatchNorm1d(inputs),
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, features),
        )
        self.register_buffer("position", positions(grid.rows, grid.cols), persistent=False)
        self.register_buffer("rows_seen", seen(grid.rows, self.hole), persistent=False)
        self.register_buffer("cols_seen", seen(grid.cols, self.hole), persistent=False)

    def forward(
        self,
        local: Tensor,
        every: int = 1,
        phase: tuple[int, int] = (0, 0),
        cells: tuple[slice, slice] | None = None,
    ) -> Tensor:
        """Global features z_g.

        Parameters
        ----------
        local : Tensor
            z_l of the grid, [B, rows, cols, D].
        every : int
            Step between the cells whose z_g is computed: neighbours say nearly the same, so that training
            takes every second one, of more images.
        phase : (int, int)
            The first of them, in [0, every).
        cells : (slice, slice), optional
            Rows and columns of the grid that ``local`` has, beyond which nothing is seen; all if not given.

        Returns
        -------
        Tensor
            [B, rows', cols', D], of ``local[:, phase[0]::every, phase[1]::every]``.
        """
        value = F.relu(self.value(local))
        cells = cells or (slice(None), slice(None))
        rows, cols = self.rows_seen[cells[0], cells[0]], self.cols_seen[cells[1], cells[1]]
        rows, cols = rows[phase[0] :: every], cols[phase[1] :: every]
        # The convolution's outputs begin before the grid where the first cell is not its first.
        before = [-start % every for start in phase]
        near = surround_conv2d(
            value.permute(0, 3, 1, 2),
            self.ring,
            self.bias,
            kernel=self.kernel,
            hole=self.hole,
            stride=every,
            padding=(self.kernel // 2 + before[0], self.kernel // 2 + before[1]),
            far_weight=self.beyond if self.far else None,
            dilations=self.far,
        )
        first_row, first_col = (int(cells > 0) for cells in before)
        near = near[:, :, first_row : first_row + len(rows), first_col : first_col + len(cols)]
        around = F.relu(near.permute(0, 2, 3, 1) + self.mean(mean_seen(value, rows, cols)))
        position = self.position[cells][phase[0] :: every, phase[1] :: every].to(around.dtype)
        x = torch.cat([around, position.expand(len(around), -1, -1, -1)], dim=-1)
        return self.head(x.flatten(0, 2)).unflatten(0, x.shape[:3])


def mean_seen(value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Mean of v over the cells that share no pixel with p, for every p.

    Never the sum over all cells less that over the hole: what lies in the hole would come back as rounding.

    Parameters
    ----------
    value : Tensor
        [B, rows, cols, C].
    rows, cols : Tensor
        [rows', rows] and [cols', cols]: 1 for rows (columns) outside p's hole.

    Returns
    -------
    Tensor
        [B, rows', cols', C].
    """
    count = value.shape[1] * value.shape[2] - (1 - rows).sum(1)[:, None] * (1 - cols).sum(1)
    rows, cols = rows.to(value.dtype), cols.to(value.dtype)
    above_and_below = torch.einsum("ir,brd->bid", rows, value.sum(2))
    beside = torch.einsum("ir,bjrd->bijd", 1 - rows, torch.einsum("jc,brcd->bjrd", cols, value))
    return (above_and_below[:, :, None] + beside) * (1 / count[..., None]).to(value.dtype)


def seen(cells: int, hole: int) -> Tensor:
    """Float32 [cells, cells]: 1 where cell j lies outside the hole of ``hole`` cells about cell i."""
    cell = torch.arange(cells)
    return ((cell[:, None] - cell).abs() > hole // 2).float()


def positions(rows: int, cols: int) -> Tensor:
    """Float32 [rows, cols, 16]: where a cell lies in the image, as Fourier features."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    waves = [math.pi * 2**k / 2 * axis for k in range(FREQUENCIES) for axis in (y, x)]
    return torch.stack([f(wave) for wave in waves for f in (torch.sin, torch.cos)], dim=-1)
