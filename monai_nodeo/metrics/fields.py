# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers of a displacement field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.determinants import SMALLEST_DETERMINANT, central_determinants
from monai_nodeo.geometry.folds import count_folds
from monai_nodeo.geometry.jacobian import check_ddf, jacobian_slabs

__all__ = [
    "folded_cell_count",
    "folding_fraction",
    "learn2reg_sd_log_jacobian",
    "mean_displacement",
    "sd_log_jacobian",
]


def folding_fraction(ddf: Tensor) -> Tensor:
    """Share of the voxels whose Jacobian determinant (forward differences) is not positive.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,), in [0, 1].
    """
    # not "<= 0": a field that holds NaN is no field without folds
    counts = [(~(part > 0)).flatten(1).sum(1, dtype=torch.float64) for part in jacobian_slabs(ddf)]
    return (torch.stack(counts).sum(0) / math.prod(n - 1 for n in ddf.shape[2:])).to(ddf.dtype)


def folded_cell_count(ddf: Tensor) -> Tensor:
    """Cells in which any finite difference shows a fold, see :py:mod:`monai_nodeo.geometry.folds`.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,), whole numbers in floating point; 0 for a digital diffeomorphism.
    """
    return count_folds(ddf)[0].to(ddf.dtype)


def sd_log_jacobian(ddf: Tensor) -> Tensor:
    """Standard deviation of the logarithm of the Jacobian determinant, folds taken as 1e-9: 0 for a rigid motion.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,).
    """
    return _deviation(part.clamp(min=SMALLEST_DETERMINANT).log() for part in jacobian_slabs(ddf)).to(ddf.dtype)


def learn2reg_sd_log_jacobian(ddf: Tensor) -> Tensor:
    """``LogJacDetStd`` of the Learn2Reg challenges, which is smaller than :py:func:`sd_log_jacobian`.

    The standard deviation of ``log(det + 3)``, by central differences, without two voxels along each border.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,).

    Raises:
        ValueError: when an axis has fewer than five voxels.
    """
    check_ddf(ddf)
    if min(ddf.shape[2:]) < 5:
        raise ValueError(f"ddf {tuple(ddf.shape)} has fewer than five voxels along an axis: nothing is left inside.")
    parts = (central_determinants(ddf[:, :, start : stop + 4]) + 3 for start, stop in slabs(ddf[:, :, 4:]))
    return _deviation(part.clamp(min=SMALLEST_DETERMINANT).log() for part in parts).to(ddf.dtype)


def mean_displacement(ddf: Tensor, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """Mean length of the displacement.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        spacing: voxel size, one for all axes or one an axis; the result has its unit.

    Returns:
        (B,).
    """
    size = torch.as_tensor(spacing, dtype=ddf.dtype, device=ddf.device).expand(ddf.shape[1])
    # a norm along an axis that is not the last one takes four times as long on a CPU
    total = ddf.new_zeros(len(ddf), dtype=torch.float64)
    for start, stop in slabs(ddf):
        part = ddf[:, :, start:stop]
        squares = torch.zeros_like(part[:, 0])
        for component, side in zip(part.unbind(1), size, strict=True):
            squares += (component * side).square_()
        total += squares.sqrt_().flatten(1).sum(1, dtype=torch.float64)
    return (total / ddf[0, 0].numel()).to(ddf.dtype)


def _deviation(parts: Iterable[Tensor]) -> Tensor:
    """Standard deviation of values (B, ...) that come in parts, (B,), float64."""
    sums = []
    for part in parts:
        values = part.flatten(1).double()
        sums.append(
            torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
        )
    count, total, squares = torch.stack(sums).sum(0)
    return (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
