# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Jacobian determinant of a displacement, by forward differences."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.determinants import determinants

__all__ = ["check_ddf", "jacobian_determinant"]


def check_ddf(ddf: Tensor) -> None:
    """Refuse a tensor that is no displacement with derivatives.

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two voxels.
    """
    dims = ddf.ndim - 2
    if dims not in (2, 3) or ddf.shape[1] != dims:
        raise ValueError(f"ddf must be (B, 2, H, W) or (B, 3, H, W, D), got {tuple(ddf.shape)}.")
    if min(ddf.shape[2:]) < 2:
        raise ValueError(f"ddf {tuple(ddf.shape)} has an axis of one voxel, along which nothing can be differentiated.")


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of ``I + grad ddf`` by forward differences, one voxel shorter along each axis.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.

    Returns:
        (B, *(spatial - 1)); 1 where nothing is deformed, not positive where the field folds.

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two voxels.
    """
    check_ddf(ddf)
    parts = [determinants(ddf[:, :, start : stop + 1]) for start, stop in slabs(ddf[:, :, 1:])]
    return torch.cat(parts, dim=1)
