# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is seen of an image on a lattice of points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NOISE", "Grid", "View", "sampled"]

NOISE = 0.05  # standard deviation that is taken for noise, as a share of the image's


@dataclass(frozen=True)
class Grid:
    """A lattice of points.

    Attributes:
        affine: index -> place, (D, D + 1), float64.
        shape: D sizes.
    """

    affine: Tensor
    shape: tuple[int, ...]

    @classmethod
    def around(cls, steps: Tensor, extent: Tensor) -> Grid:
        """With a point in the middle of its place 0: steps (D, D) as columns, extents in steps."""
        shape = tuple(max(2, math.ceil(float(x)) + 1) for x in extent)
        middle = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
        return cls(torch.cat([steps, -(steps @ middle)[:, None]], 1), shape)

    def place(self, index: Tensor) -> Tensor:
        """(D,) of an index (D,)."""
        return self.affine[:, :-1] @ index + self.affine[:, -1]

    def points(self) -> Tensor:
        """(N, D), float32, the last axis fastest."""
        index = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in self.shape])
        return (index @ self.affine[:, :-1].T + self.affine[:, -1]).float()


@dataclass(frozen=True)
class View:
    """What is seen of an image on a lattice.

    Attributes:
        grid: its lattice.
        values: (*shape), standard deviation 1 where it counts.
        weight: (*shape), in [0, 1]: how much a point counts.
    """

    grid: Grid
    values: Tensor
    weight: Tensor

    def pooled(self, spacing: float) -> View:
        """Means of blocks of points, as large as fit into the spacing."""
        dims = self.values.ndim
        own = torch.linalg.vector_norm(self.grid.affine[:, :-1], dim=0).tolist()
        blocks = [max(1, min(int(spacing / s + 0.01), n)) for s, n in zip(own, self.values.shape, strict=True)]
        if max(blocks) == 1:
            return View(self.grid, self.values, self.weight.contiguous())
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        everywhere = self.weight.stride() == (0,) * dims
        values = pool((self.values if everywhere else self.values * self.weight)[None, None], blocks)[0, 0]
        weight = torch.ones_like(values) if everywhere else pool(self.weight[None, None], blocks)[0, 0]
        step = torch.tensor(blocks, dtype=torch.float64)
        affine = torch.cat([self.grid.affine[:, :-1] * step, self.grid.place((step - 1) / 2)[:, None]], 1)
        return View(Grid(affine, tuple(values.shape)), values / weight.clamp_min(1e-6), weight)

    def on(self, grid: Grid) -> View:
        """The same on another lattice, of the mean spacing of its points."""
        pooled = self.pooled(float(torch.linalg.vector_norm(grid.affine[:, :-1], dim=0).min()))
        stack = torch.stack([pooled.values * pooled.weight, pooled.weight])
        seen, inside = sampled(stack, pooled.grid, grid.points()[None], self.grid)
        values, weight = seen[0].view(2, *grid.shape)
        return View(grid, values / weight.clamp_min(1e-6), weight * inside[0].view(grid.shape)).standardised()

    def standardised(self) -> View:
        total = self.weight.sum().clamp_min(1e-6)
        mean = (self.values * self.weight).sum() / total
        centred = self.values - mean
        deviation = ((centred**2 * self.weight).sum() / total).sqrt()
        return View(self.grid, centred / deviation.clamp_min(1e-12), self.weight)

    def gradient(self) -> Tensor:
        """(D, *shape), by place."""
        padded = F.pad(self.values[None, None], [1, 1] * self.values.ndim, mode="replicate")[0, 0]
        steps = []
        for axis in range(self.values.ndim):
            inner = tuple(slice(None) if a == axis else slice(1, -1) for a in range(self.values.ndim))
            x = padded[inner]
            n = self.values.shape[axis]
            steps.append((x.narrow(axis, 2, n) - x.narrow(axis, 0, n)) / 2)
        by_index = torch.stack(steps)
        back = torch.linalg.inv(self.grid.affine[:, :-1]).float()
        return torch.einsum("i...,ij->j...", by_index, back)


def sampled(values: Tensor, grid: Grid, points: Tensor, frame: Grid | None = None) -> tuple[Tensor, Tensor]:
    """Values (C, *shape) at places (B, N, D): (B, C, N), and what counts, (B, N): 1 inside, 0 half a step outside.

    ``frame`` is the lattice whose border counts, when it is another one.
    """
    dims = len(grid.shape)
    outer = frame or grid
    back = torch.linalg.inv(outer.affine[:, :-1]).float()
    index = (points - outer.affine[:, -1].float()) @ back.T
    last = index.new_tensor([n - 1.0 for n in outer.shape])
    inside = (0.5 + torch.minimum(index, last - index)).clamp(0, 1).amin(-1)
    if frame is not None:
        back = torch.linalg.inv(grid.affine[:, :-1]).float()
        index = (points - grid.affine[:, -1].float()) @ back.T
    size = index.new_tensor([max(n - 1.0, 1.0) for n in grid.shape])
    where = (2 * index / size - 1).flip(-1)
    where = where.view(len(points), *[1] * (dims - 1), -1, dims)
    out = F.grid_sample(
        values.expand(len(points), *values.shape), where, mode="bilinear", padding_mode="border", align_corners=True
    )
    return out.view(len(points), len(values), -1), inside
