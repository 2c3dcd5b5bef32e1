# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images and displacements on grids of other voxels over the same extent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.geometry.axes import apply_along_axes, resampling_matrix
from monai_nodeo.geometry.coordinates import axis_values, rescale_points

__all__ = ["coarsen_ddf", "refine_ddf", "resize", "resize_ddf"]


def resize(values: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """An image, or the positions of a cloud, at the voxels of another grid over the same extent.

    Linear interpolation; going to fewer voxels, a Gaussian of half a new voxel comes first.

    Args:
        values: image, or phi in [-1, 1], (B, C, *spatial).
        spatial_shape: D sizes of the other grid.

    Returns:
        (B, C, *spatial_shape).
    """
    if tuple(values.shape[2:]) == tuple(spatial_shape):
        return values
    sizes = zip(values.shape[2:], spatial_shape, strict=True)
    return apply_along_axes(values, [_resampling(n, m, values.dtype, values.device) for n, m in sizes])


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _resampling(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return resampling_matrix(size, new_size).to(dtype=dtype, device=device)


def resize_ddf(ddf: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A displacement at the voxels of another grid over the same extent, in the other grid's voxels.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        spatial_shape: D sizes of the other grid.

    Returns:
        (B, D, *spatial_shape).
    """
    return rescale_points(resize(ddf, spatial_shape).movedim(1, -1), ddf.shape[2:], spatial_shape).movedim(-1, 1)


def refine_ddf(ddf: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A displacement on a grid whose voxels are parts of the given ones: another grid over the same field of view.

    Linear interpolation between the voxel centres; beyond the outermost ones, they go on.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        spatial_shape: D sizes of the other grid, multiples of the given ones.

    Returns:
        (B, D, *spatial_shape), in the other grid's voxels.
    """
    mode = {2: "bilinear", 3: "trilinear"}[len(spatial_shape)]
    return _in_voxels_of(F.interpolate(ddf, tuple(spatial_shape), mode=mode, align_corners=False), ddf.shape[2:])


def coarsen_ddf(ddf: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A displacement on a grid whose voxels are made of several of the given ones: their mean displacement.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        spatial_shape: D sizes of the other grid, divisors of the given ones.

    Returns:
        (B, D, *spatial_shape), in the other grid's voxels.
    """
    return _in_voxels_of(F.interpolate(ddf, tuple(spatial_shape), mode="area"), ddf.shape[2:])


def _in_voxels_of(ddf: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A displacement on a grid, in voxels of a grid of another shape over the same field of view, in its own voxels."""
    ratios = tuple(m / n for n, m in zip(spatial_shape, ddf.shape[2:], strict=True))
    return ddf * axis_values(ratios, ddf.dtype, ddf.device).view(1, -1, *[1] * len(ratios))
