# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers of a displacement field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.determinants import SMALLEST_DETERMINANT, central_determinants
from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.geometry.jacobian import check_ddf, jacobian_determinant

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
    return (~(jacobian_determinant(ddf) > 0)).float().flatten(1).mean(1)


def folded_cell_count(ddf: Tensor) -> Tensor:
    """Cells in which any finite difference shows a fold, see :py:mod:`monai_nodeo.geometry.folds`.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,), whole numbers in floating point; 0 for a digital diffeomorphism.
    """
    return folded_cells(ddf).flatten(1).sum(1).to(ddf.dtype)


def sd_log_jacobian(ddf: Tensor) -> Tensor:
    """Standard deviation of the logarithm of the Jacobian determinant, folds taken as 1e-9: 0 for a rigid motion.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.

    Returns:
        (B,).
    """
    return jacobian_determinant(ddf).clamp(min=SMALLEST_DETERMINANT).log().flatten(1).std(1, correction=0)


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
    parts = [
        (central_determinants(ddf[:, :, start : stop + 4]) + 3).clamp(min=SMALLEST_DETERMINANT).log().flatten(1)
        for start, stop in slabs(ddf[:, :, 4:])
    ]
    return torch.cat(parts, 1).std(1, correction=0)


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
    squares = torch.zeros_like(ddf[:, 0])
    for component, side in zip(ddf.unbind(1), size, strict=True):
        squares += (component * side).square_()
    return squares.sqrt_().flatten(1).mean(1)
