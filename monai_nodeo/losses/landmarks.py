# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of points: how far a displacement brings the fixed ones to their partners.

Landmarks are (B, N, 2, D): for each point its voxel on the fixed grid, and the voxel of that grid which the affines
take to its partner in the moving image. A displacement that is right takes the first, by ``x + ddf(x)``, to the second.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_nodeo.geometry.coordinates import axis_values
from monai_nodeo.geometry.sampling import sample_points
from monai_nodeo.losses._base import at_least_float32

__all__ = ["landmark_errors", "landmark_loss"]


def landmark_errors(ddf: Tensor, landmarks: Tensor) -> Tensor:
    """Vectors from where the displacement takes the fixed points to their partners.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        landmarks: (B, N, 2, D), voxels of the fixed grid.

    Returns:
        (B, N, D), voxels of the fixed grid; differentiable in the ddf.

    Raises:
        ValueError: when the landmarks do not fit the ddf.
    """
    dims = ddf.ndim - 2
    if landmarks.ndim != 4 or landmarks.shape[0] != ddf.shape[0] or landmarks.shape[2:] != (2, dims):
        raise ValueError(
            f"landmarks have shape {tuple(landmarks.shape)}, expected ({ddf.shape[0]}, N, 2, {dims}) for a ddf of "
            f"shape {tuple(ddf.shape)}."
        )
    ddf = at_least_float32(ddf)  # half precision has no voxels between 128 and 129
    fixed, partner = landmarks.to(ddf).unbind(2)
    return partner - fixed - sample_points(ddf, fixed.mT).mT


def landmark_loss(ddf: Tensor, landmarks: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean squared distance on the fixed grid, for use as a term of a loss.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        landmarks: (B, N, 2, D), voxels of the fixed grid.
        spacing: voxel size for each of the D tensor axes.

    Returns:
        (B,), of each pair, in the squared unit of the spacing.
    """
    errors = landmark_errors(ddf, landmarks) * axis_values(tuple(spacing), ddf.dtype, ddf.device)
    return errors.square().sum(-1).mean(1)
