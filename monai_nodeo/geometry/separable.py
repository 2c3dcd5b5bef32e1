# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Separable linear maps of an image: smoothing and interpolation as one small matrix an axis.

A matrix holds a kernel, its border rule and any number of passes at once, so the cost does not depend on the window
or the number of passes, and the gradient is the transposed matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from monai_nodeo.geometry._kernels import kernels_for

__all__ = ["apply_along_axes", "interpolation_matrix", "kernel_matrix", "resampling_matrix", "upsampling_matrix"]

_LONG = 1024  # voxels of the last axis, above which a product with a whole matrix takes longer than to turn the image


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must be of use to a later training
def kernel_matrix(
    kernel: tuple[float, ...],
    size: int,
    passes: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Matrix of a centred one-dimensional kernel on an axis, whose outermost voxels go on: a constant stays a constant.

    Args:
        kernel: odd number of weights; they are scaled to sum to one.
        size: voxels along the axis.
        passes: how often the kernel is applied.
        dtype: type of the matrix (it is worked out in float64).
        device: device of the matrix.

    Returns:
        (size, size), rows sum to one. It is kept for later callers: do not change it in place.

    Raises:
        ValueError: when the kernel has no centre or the passes are negative.
    """
    if len(kernel) % 2 == 0 or passes < 0:
        raise ValueError(f"expected an odd number of weights and 0 or more passes, got {len(kernel)} and {passes}.")
    reach = len(kernel) // 2
    rows = torch.arange(size).unsqueeze(1)
    columns = rows + torch.arange(-reach, reach + 1)
    weights = torch.tensor(kernel, dtype=torch.float64).expand(size, -1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, columns.clamp(0, size - 1), weights)
    matrix /= matrix.sum(1, keepdim=True)
    return torch.linalg.matrix_power(matrix, passes).to(device=device, dtype=dtype)


def interpolation_matrix(nodes: int, size: int) -> Tensor:
    """Matrix of linear interpolation from a lattice to an axis, as ``F.interpolate(align_corners=False)``.

    Args:
        nodes: lattice nodes along the axis.
        size: voxels along the axis.

    Returns:
        (size, nodes), float32, rows sum to one.
    """
    return F.interpolate(torch.eye(nodes).unsqueeze(0), size=size, mode="linear", align_corners=False)[0].t()


def resampling_matrix(size: int, new_size: int) -> Tensor:
    """Matrix that takes an axis to another number of voxels over the same extent, first centre to first, last to last.

    Going to fewer voxels, the axis is smoothed before by a Gaussian of half a new voxel.

    Args:
        size: voxels along the axis.
        new_size: new number of voxels, at least 2 if ``size`` is.

    Returns:
        (new_size, size), float64, rows sum to one.
    """
    distance = (size - 1) / max(new_size - 1, 1)
    places = torch.arange(new_size, dtype=torch.float64) * distance
    before = places.floor().clamp(max=max(size - 2, 0))
    share = (places - before).unsqueeze(1)
    kernel, reach = torch.ones(1, dtype=torch.float64), 0
    if new_size < size:
        reach = math.ceil(1.5 * distance)  # three standard deviations
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / (0.5 * distance)) ** 2)
        kernel /= kernel.sum()
    # the kernel around the voxel before, and around the one behind; no matrix of the whole axis, which may be long
    weights = F.pad((1 - share) * kernel, (0, 1)) + F.pad(share * kernel, (1, 0))
    columns = before.long().unsqueeze(1) + torch.arange(-reach, reach + 2)
    matrix = torch.zeros(new_size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, columns.clamp(0, size - 1), weights)


def upsampling_matrix(nodes: int, size: int) -> Tensor:
    """Matrix that takes a lattice to an axis by doubling it as often as it fits, each time with linear interpolation.

    The result is smoother than a single interpolation, whose kinks at the nodes fold more easily.

    Args:
        nodes: lattice nodes along the axis.
        size: voxels along the axis.

    Returns:
        (size, nodes), float32, rows sum to one.
    """
    matrix = torch.eye(nodes)
    while 2 * matrix.shape[0] <= size:
        matrix = interpolation_matrix(matrix.shape[0], 2 * matrix.shape[0]) @ matrix
    return interpolation_matrix(matrix.shape[0], size) @ matrix


def apply_along_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each spatial axis by its matrix.

    Args:
        x: (B, C, *spatial).
        matrices: one (new size, size) per spatial axis, ``None`` for an axis to leave alone.

    Returns:
        (B, C, *new spatial).
    """
    for axis in reversed(range(len(matrices))):
        matrix = matrices[axis]
        if matrix is None:
            continue
        last = axis + 1 == len(matrices)
        bands = _bands(matrix, x) if not last or matrix.shape[1] > _LONG else None
        if bands is not None and last:
            x = _Banded.apply(x.transpose(-1, -2).contiguous(), 1 + axis, *bands).transpose(-1, -2).contiguous()
            continue
        if bands is not None:
            x = _Banded.apply(x, 2 + axis, *bands)
            continue
        before, after = x.shape[: 2 + axis], x.shape[3 + axis :]
        # One large product for the last axis, one per leading index for the others: no transposed copies.
        if after:
            x = torch.matmul(matrix, x.reshape(math.prod(before), x.shape[2 + axis], math.prod(after)))
        else:
            x = torch.matmul(x.reshape(-1, x.shape[-1]), matrix.t())
        x = x.view(*before, matrix.shape[0], *after)
    return x


_known: Any = WeakTensorKeyDictionary()  # matrix -> its bands, as long as it lives


def _bands(matrix: Tensor, x: Tensor) -> tuple[Any, Any, Any] | None:
    """Kernels, and the bands of a matrix and of its transpose, if it has few entries in a row; else None."""
    kernels = None if matrix.requires_grad else kernels_for(x, "separable")
    if kernels is None or matrix.dtype != x.dtype:
        return None
    if matrix not in _known:
        both = kernels.band_of(matrix), kernels.band_of(matrix.t())
        _known[matrix] = None if None in both else both
    bands = _known[matrix]
    return None if bands is None else (kernels, *bands)


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, kernels: Any, band: Any, transposed: Any) -> Tensor:
        ctx.axis, ctx.kernels, ctx.transposed = axis, kernels, transposed
        return kernels.apply(x, band, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.kernels.apply(grad, ctx.transposed, ctx.axis), None, None, None, None
