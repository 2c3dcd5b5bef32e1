# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums and weighted means over sliding windows that end at the border of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.smoothing import odd_window

__all__ = ["SMALLEST_WEIGHT", "Windows", "window_sum"]

# Share of a window that must lie inside the mask for its mean to be a number.
SMALLEST_WEIGHT = 1e-6


def window_sum(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Sum over the window around each voxel, as far as it lies inside; its own transpose.

    Args:
        x: (..., *spatial).
        sides: of the window in voxels, odd, one a spatial axis; along an axis of 1 nothing is done.

    Returns:
        same shape; the same tensor if all sides are 1.
    """
    kernels = kernels_for(x, "windows")
    if kernels is not None and max(sides) > 1:
        return kernels.window_sum(x, sides)
    for axis, side in enumerate(sides, start=x.ndim - len(sides)):
        if side > 1:
            x = _sum_along(x, axis, side)
    return x


def _sum_along(x: Tensor, axis: int, side: int) -> Tensor:
    """Blocks of 1, 2, 4, ... voxels are added up, so that a window costs the logarithm of its side."""
    size = x.shape[axis]
    reach = min(side // 2, size - 1)
    blocks = F.pad(x, [*[0, 0] * (x.ndim - 1 - axis), reach, reach])
    total = blocks.narrow(axis, 0, size)
    start = length = 1
    while 2 * length <= 2 * reach + 1:
        count = blocks.shape[axis] - length
        blocks = blocks.narrow(axis, 0, count) + blocks.narrow(axis, length, count)
        length *= 2
        if (2 * reach + 1) & length:
            total = total + blocks.narrow(axis, start, size)
            start += length
    return total


class _WindowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sides: tuple[int, ...]) -> Tensor:
        ctx.sides = sides
        return window_sum(x, sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return window_sum(grad, ctx.sides), None


class Windows:
    """The windows of one size around the voxels of an image.

    Args:
        image: (B, C, *spatial), whose shape, type and device count.
        length: side of the window in units of the smallest voxel side: voxels of an isotropic image, fewer along an
            axis of longer voxels.
        spacing: voxel size along each axis in mm (or any unit); by default the voxels are cubes.
        weight: how much each voxel counts in the means, (B, 1, *spatial); by default all the same.

    Attributes:
        sides: of the window in voxels, odd.

    Raises:
        ValueError: when the weights are not of the image's shape.
    """

    def __init__(
        self, image: Tensor, length: float, spacing: Sequence[float] | None = None, weight: Tensor | None = None
    ) -> None:
        shape = image.shape[2:]
        if weight is not None and weight.shape != (image.shape[0], 1, *shape):
            raise ValueError(
                f"weight {tuple(weight.shape)} does not fit images {tuple(image.shape)}: one channel each."
            )
        spacing = spacing or (1.0,) * len(shape)
        self.sides = tuple(odd_window(length * min(spacing) / side) for side in spacing)
        self.weight = None if weight is None else weight.detach()
        if self.weight is None:  # a product of one factor an axis
            self._shares = []
            for axis, (n, side) in enumerate(zip(shape, self.sides, strict=True)):
                place = [-1 if i == axis else 1 for i in range(len(shape))]
                counts = _inverse_counts(n, side, image.dtype, image.device)
                self._shares.append(counts.view(1, 1, *place).expand(1, 1, *shape))
        else:
            self._shares = [1 / window_sum(self.weight, self.sides).clamp(min=SMALLEST_WEIGHT)]

    def share(self) -> Tensor:
        """What a sum of weighted values in a window is to be multiplied by to be their mean, (B or 1, 1, *spatial)."""
        return math.prod(self._shares[1:], start=self._shares[0])

    def mean(self, x: Tensor) -> Tensor:
        """Weighted mean in the window around each voxel of an image, same shape; differentiable."""
        weighted = x if self.weight is None else x * self.weight
        return _WindowSum.apply(weighted, self.sides) * self.share()

    def image_mean(self, x: Tensor) -> Tensor:
        """Weighted mean over an image, (B, C, 1, ...)."""
        spatial = tuple(range(2, x.ndim))
        if self.weight is None:
            return x.mean(dim=spatial, keepdim=True)
        return (x * self.weight).sum(dim=spatial, keepdim=True) / self.count(x)

    def count(self, x: Tensor) -> Tensor:
        """What the weights of each item's voxels add up to, (B or 1, 1, 1, ...)."""
        spatial = tuple(range(2, x.ndim))
        if self.weight is None:
            return x.new_full((1,) * x.ndim, math.prod(x.shape[2:]))
        return self.weight.sum(dim=spatial, keepdim=True).clamp(min=SMALLEST_WEIGHT)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must be of use to a later training
def _inverse_counts(size: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One over the number of voxels in the window at each place of an axis."""
    return 1 / window_sum(torch.ones(size, dtype=dtype, device=device), [side])
