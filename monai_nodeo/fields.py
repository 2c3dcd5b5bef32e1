# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Geometry: grids, units and axis order. Every conversion between them is here and nowhere else.

Tensor axis order throughout: channel ``i`` of a position or displacement belongs to spatial axis ``i``.
``phi`` holds positions in [-1, 1] (``align_corners=True``), a ``ddf`` displacements in voxels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from monai.networks.blocks import Warp
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "check_ddf",
    "ddf_to_phi",
    "identity_grid",
    "jacobian_determinant",
    "lower_corner",
    "make_warp",
    "phi_to_ddf",
    "sample",
    "warp",
]


def identity_grid(
    spatial_shape: Sequence[int], device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Positions of the voxel centres.

    Args:
        spatial_shape: size of the grid, D entries; an axis of one voxel lies at 0.
        device: where the grid is made.
        dtype: floating point type of the grid.

    Returns:
        phi, (1, D, *spatial), in [-1, 1], tensor axis order.
    """
    axes = [
        torch.linspace(-1, 1, n, device=device, dtype=dtype) if n > 1 else torch.zeros(1, device=device, dtype=dtype)
        for n in spatial_shape
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must be of use to a later training
def _voxels_per_unit(spatial_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Length of one unit of phi in voxels, (1, D, 1, ...); kept, so that a device is sent it once."""
    halves = torch.tensor([(n - 1) / 2 for n in spatial_shape], dtype=dtype, device=device)
    return halves.view(1, -1, *[1] * len(spatial_shape))


def phi_to_ddf(phi: Tensor, identity: Tensor) -> Tensor:
    """Displacement of positions from the identity.

    Args:
        phi: positions in [-1, 1], (B, D, *spatial), tensor axis order.
        identity: :py:func:`identity_grid` of the same spatial shape.

    Returns:
        ddf in voxels, (B, D, *spatial).
    """
    return (phi - identity) * _voxels_per_unit(tuple(phi.shape[2:]), phi.dtype, phi.device)


def ddf_to_phi(ddf: Tensor, identity: Tensor) -> Tensor:
    """Positions in [-1, 1] reached by a displacement in voxels: the inverse of :py:func:`phi_to_ddf`."""
    # An axis of one voxel has no extent: whatever its displacement, phi stays at 0.
    scale = _voxels_per_unit(tuple(ddf.shape[2:]), ddf.dtype, ddf.device)
    return identity + torch.where(scale > 0, ddf / scale.clamp(min=0.5), 0)


def make_warp(mode: str = "bilinear", padding_mode: str = "border") -> Warp:
    """MONAI's ``Warp``, without its notice that the compiled extension is absent.

    The module caches its grid by shape, not by device: keep one for each device, and for no longer than needed.

    Args:
        mode: ``"bilinear"`` (linear in 3D too) or ``"nearest"``.
        padding_mode: ``"border"``, ``"zeros"`` or ``"reflection"``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample.*")
        return Warp(mode=mode, padding_mode=padding_mode)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Sample an image where the displacement points.

    Args:
        image: (B, C, *spatial).
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order: ``out(x) = image(x + ddf(x))``.
        mode: ``"bilinear"`` for images, ``"nearest"`` for labels.
        padding_mode: value outside the image, see :py:func:`make_warp`.

    Returns:
        (B, C, *spatial).
    """
    return make_warp(mode, padding_mode)(image, ddf)


def sample(image: Tensor, phi: Tensor) -> Tensor:
    """Linear samples of an image at positions, for the inner loop: MONAI's ``Warp`` without the way through voxels.

    Faster and leaner than :py:func:`warp`, which gives the same values.

    Args:
        image: (B, C, *spatial).
        phi: positions in [-1, 1], (B, D, *spatial), tensor axis order; outside, the image's border continues.

    Returns:
        (B, C, *spatial).
    """
    # grid_sample wants the last axis of the image first
    return F.grid_sample(image, phi.movedim(1, -1).flip(-1), padding_mode="border", align_corners=True)


def lower_corner(spatial_dims: int, ahead: int | None = None) -> tuple[Any, ...]:
    """Index of the lower corner of every cell of a grid (..., *spatial), or of its neighbour along axis ``ahead``."""
    return (..., *[slice(1, None) if axis == ahead else slice(0, -1) for axis in range(spatial_dims)])


def _determinant(g: list[list[Tensor]]) -> Tensor:
    """Determinant of a D x D matrix of tensors, D = 2 or 3."""
    if len(g) == 2:
        return g[0][0] * g[1][1] - g[0][1] * g[1][0]
    return (
        g[0][0] * (g[1][1] * g[2][2] - g[1][2] * g[2][1])
        - g[0][1] * (g[1][0] * g[2][2] - g[1][2] * g[2][0])
        + g[0][2] * (g[1][0] * g[2][1] - g[1][1] * g[2][0])
    )


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
    dims = ddf.ndim - 2
    base = ddf[lower_corner(dims)]
    columns = [(ddf[lower_corner(dims, axis)] - base).unbind(1) for axis in range(dims)]
    jacobian = [[columns[a][i] + 1 if a == i else columns[a][i] for a in range(dims)] for i in range(dims)]
    return _determinant(jacobian)
