# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Positions in [-1, 1] and displacements in voxels: every conversion between them is here.

Millimetres, RAS and LPS are in `files.lps` and `files.grid`.

Tensor axis order throughout: channel ``i`` of a position or displacement belongs to spatial axis ``i``.
``phi`` holds positions in [-1, 1] (``align_corners=True``), a ``ddf`` displacements in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "axis_values",
    "ddf_to_phi",
    "identity_grid",
    "lengths",
    "phi_to_ddf",
    "rescale_points",
    "voxels_per_unit",
]


def identity_grid(
    spatial_shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    planes: slice = slice(None),
) -> Tensor:
    """Positions of the voxel centres.

    Args:
        spatial_shape: size of the grid, D entries; an axis of one voxel lies at 0.
        device: where the grid is made.
        dtype: floating point type of the grid.
        planes: those along the first axis that are wanted.

    Returns:
        phi, (1, D, *spatial), in [-1, 1], tensor axis order.
    """
    axes = [
        torch.linspace(-1, 1, n, device=device, dtype=dtype) if n > 1 else torch.zeros(1, device=device, dtype=dtype)
        for n in spatial_shape
    ]
    return torch.stack(torch.meshgrid(axes[0][planes], *axes[1:], indexing="ij")).unsqueeze(0)


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


def lengths(vectors: Tensor, dim: int) -> Tensor:
    """Lengths of vectors whose components are along an axis, which is no longer there.

    ``torch.linalg.vector_norm`` takes 8 to 80 times as long for two or three components.
    """
    return vectors.square().sum(dim).sqrt()


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
