# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images and displacements on grids of other voxels over the same extent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from monai_nodeo.geometry.coordinates import rescale_points
from monai_nodeo.geometry.separable import apply_along_axes, resampling_matrix

__all__ = ["resize", "resize_ddf"]


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
