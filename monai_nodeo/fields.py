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

from monai_nodeo.layers import apply_along_axes, resampling_matrix
from monai_nodeo.slabs import slabs

__all__ = [
    "axis_values",
    "check_ddf",
    "coarsen_ddf",
    "compose",
    "ddf_to_phi",
    "determinant",
    "identity_grid",
    "jacobian_determinant",
    "lower_corner",
    "make_warp",
    "phi_to_ddf",
    "refine_ddf",
    "rescale_points",
    "resize",
    "resize_ddf",
    "sample_points",
    "sample_voxels",
    "voxels_per_unit",
    "warp",
    "weighted_mean",
]

_SMALLEST_WEIGHT = 1e-4  # below, a mean is rounding


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


# Room for all that registrations use at a time: a recorded CUDA graph reads these tensors where they are, so that they
# have to be kept as long as it lives.
_KEPT = 256


@lru_cache(maxsize=_KEPT)
@torch.inference_mode(False)  # what is kept must be of use to a later training
def axis_values(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number for each axis, kept, so that a device is sent it once: do not change it in place.

    Args:
        values: D numbers.
        dtype: of the result.
        device: of the result.

    Returns:
        (D,).
    """
    return torch.tensor(values, dtype=dtype, device=device)


def voxels_per_unit(spatial_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Length of one unit of phi in voxels along each axis, 0 along one of one voxel.

    Args:
        spatial_shape: size of the grid, D entries.
        dtype: of the result.
        device: of the result.

    Returns:
        (1, D, 1, ...), see :py:func:`axis_values`.
    """
    halves = tuple((n - 1) / 2 for n in spatial_shape)
    return axis_values(halves, dtype, device).view(1, -1, *[1] * len(halves))


def phi_to_ddf(phi: Tensor, identity: Tensor) -> Tensor:
    """Displacement of positions from the identity.

    Args:
        phi: positions in [-1, 1], (B, D, *spatial), tensor axis order.
        identity: :py:func:`identity_grid` of the same spatial shape.

    Returns:
        ddf in voxels, (B, D, *spatial).
    """
    return (phi - identity) * voxels_per_unit(tuple(phi.shape[2:]), phi.dtype, phi.device)


def ddf_to_phi(ddf: Tensor, identity: Tensor) -> Tensor:
    """Positions in [-1, 1] reached by a displacement in voxels: the inverse of :py:func:`phi_to_ddf`."""
    # An axis of one voxel has no extent: whatever its displacement, phi stays at 0.
    scale = voxels_per_unit(tuple(ddf.shape[2:]), ddf.dtype, ddf.device)
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


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """One displacement for two: first the inner one, then from there the outer one.

    Args:
        outer: displacement in voxels, (B, D, *spatial), tensor axis order; outside the grid its border continues.
        inner: the same on the same grid.

    Returns:
        (B, D, *spatial), with ``x + composed(x) = y + outer(y)`` for ``y = x + inner(x)``.
    """
    return inner + warp(outer, inner)


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


@lru_cache(maxsize=_KEPT)
@torch.inference_mode(False)
def _resampling(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return resampling_matrix(size, new_size).to(dtype=dtype, device=device)


def weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``, and 0 where no weight is: what sampling an image times its mask, and the mask, is made of.

    Args:
        total: sums of weighted values, (B, C, *spatial).
        weight: their weights, not negative, (B, 1, *spatial).

    Returns:
        (B, C, *spatial).
    """
    return torch.where(weight > _SMALLEST_WEIGHT, total / weight.clamp(min=_SMALLEST_WEIGHT), 0)


def sample_points(image: Tensor, points: Tensor) -> Tensor:
    """Linear samples of an image at any points.

    Args:
        image: (B, C, *spatial).
        points: positions in voxels, (B, D, N), tensor axis order; outside, the image's border continues.

    Returns:
        (B, C, N).
    """
    dims = points.shape[1]
    # an axis of one voxel has one value everywhere
    halves = voxels_per_unit(tuple(image.shape[2:]), image.dtype, image.device).view(1, -1, 1).clamp(min=0.5)
    # grid_sample wants the last axis of the image first, and as many axes of points as the image has
    phi = (points / halves - 1).flip(1).movedim(1, -1).reshape(len(points), -1, *[1] * (dims - 1), dims)
    return F.grid_sample(image, phi, padding_mode="border", align_corners=True).flatten(2)


def sample_voxels(image: Tensor, positions: Tensor, mode: str = "bilinear", background: float = 0.0) -> Tensor:
    """Samples of an image at voxel positions, on any grid, with the field of view that ITK gives it.

    Args:
        image: (B, C, *spatial).
        positions: voxels of the image, (B, D, *any shape of D axes), tensor axis order.
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.
        background: value further than half a voxel outside the outermost voxels; up to there the border continues.

    Returns:
        (B, C, *any shape).
    """
    size = torch.tensor(image.shape[2:], dtype=positions.dtype, device=positions.device)
    size = size.view(1, -1, *[1] * (positions.ndim - 2))
    inside = ((positions >= -0.5) & (positions <= size - 0.5)).all(1, keepdim=True)
    # of voxel edges in [-1, 1], so that an axis of one voxel has an extent
    grid = ((2 * positions + 1) / size - 1).movedim(1, -1).flip(-1)
    values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return torch.where(inside, values, background)


def resize_ddf(ddf: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A displacement at the voxels of another grid over the same extent, in the other grid's voxels.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order.
        spatial_shape: D sizes of the other grid.

    Returns:
        (B, D, *spatial_shape).
    """
    return rescale_points(resize(ddf, spatial_shape).movedim(1, -1), ddf.shape[2:], spatial_shape).movedim(-1, 1)


def rescale_points(points: Tensor, spatial_shape: Sequence[int], new_shape: Sequence[int]) -> Tensor:
    """Positions in the voxels of another grid over the same extent.

    Args:
        points: in voxels, (..., D), tensor axis order.
        spatial_shape: D sizes of their grid.
        new_shape: D sizes of the other grid.

    Returns:
        (..., D).
    """
    ratios = tuple((m - 1) / max(n - 1, 1) for n, m in zip(spatial_shape, new_shape, strict=True))
    return points * axis_values(ratios, points.dtype, points.device)


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


def lower_corner(spatial_dims: int, ahead: int | None = None) -> tuple[Any, ...]:
    """Index of the lower corner of every cell of a grid (..., *spatial), or of its neighbour along axis ``ahead``."""
    return (..., *[slice(1, None) if axis == ahead else slice(0, -1) for axis in range(spatial_dims)])


def determinant(g: list[list[Tensor]]) -> Tensor:
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
    parts = []
    for start, stop in slabs(ddf[:, :, 1:]):
        part = ddf[:, :, start : stop + 1]
        base = part[lower_corner(dims)]
        columns = [(part[lower_corner(dims, axis)] - base).unbind(1) for axis in range(dims)]
        parts.append(determinant([[columns[a][i] + (a == i) for a in range(dims)] for i in range(dims)]))
    return torch.cat(parts, dim=1)
