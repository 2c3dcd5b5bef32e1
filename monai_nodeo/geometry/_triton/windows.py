# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums in windows, in one pass through memory along each axis.

Programs of the first axis of the grid share the voxels of an image, those of the second are the images.
"""

# The kernels are in Triton's language, whose arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["sum_along", "window_sum"]

_BLOCK = 256


def window_sum(x: Tensor, sides: Sequence[int]) -> Tensor:
    """See :py:func:`monai_nodeo.geometry.windows.window_sum`."""
    shape = x.shape[x.ndim - len(sides) :]
    with torch.cuda.device_of(x):
        for axis, side in enumerate(sides):
            if side > 1:
                x = sum_along(x.contiguous(), shape, axis, side)
    return x


def sum_along(x: Tensor, shape: Sequence[int], axis: int, side: int) -> Tensor:
    """Sums in windows along one axis of images of a shape, (..., *shape), contiguous."""
    total = torch.empty_like(x)
    voxels, stride = math.prod(shape), math.prod(shape[axis + 1 :])
    grid = (triton.cdiv(voxels, _BLOCK), x.numel() // voxels)
    _window_sums[grid](x, total, voxels, shape[axis], stride, side // 2, BLOCK=_BLOCK)
    return total


@triton.jit
def _window_sums(x, y, voxels, size, stride, REACH: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64) * voxels
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = (voxel // stride) % size
    total = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    for step in range(-REACH, REACH + 1):
        inside = (voxel < voxels) & (place + step >= 0) & (place + step < size)
        total += tl.load(x + image + voxel + step * stride, mask=inside, other=0.0)
    tl.store(y + image + voxel, total, mask=voxel < voxels)
