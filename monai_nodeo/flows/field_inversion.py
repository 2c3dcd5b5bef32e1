# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The inverse of displacement fields of any origin, voxel by voxel, and how far it is from one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_nodeo.files import Affine, Displacement, Transform
from monai_nodeo.flows.fixed_point_iteration import find_sources
from monai_nodeo.geometry.sampling import sample_points

__all__ = ["Inversion", "invert", "invert_transform"]

_TOLERANCE = 1e-3  # voxels: far below what interpolation of the field can say


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverse, and how far it is from one.

    Attributes:
        ddf: (D, *spatial), voxels, tensor axis order: ``y + ddf(y)`` is the point that the given field takes to y.
        left: (D, *spatial), voxels: from y to where the given field takes that point in fact.
        inside: (*spatial), where that point lies on the grid; elsewhere the field is not known, and its border was
            continued.
    """

    ddf: Tensor
    left: Tensor
    inside: Tensor


@torch.no_grad()
def invert(ddf: Tensor) -> Inversion:
    """Invert a displacement of any origin by a fixed point, see `find_sources`; a flow goes both ways by itself.

    Where the field folds there may be no inverse: such voxels keep the point with the smallest residual.

    Args:
        ddf: u, (D, *spatial), voxels, tensor axis order.

    Raises:
        ValueError: when the channels do not match the spatial axes.
    """
    shape, dims = tuple(ddf.shape[1:]), ddf.shape[0]
    if len(shape) != dims:
        raise ValueError(f"ddf must be (D, *spatial), got {tuple(ddf.shape)}.")
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n, device=ddf.device) for n in shape], indexing="ij"))
    targets = voxels.flatten(1).to(ddf)
    found = find_sources(lambda points: sample_points(ddf[None], points[None])[0], targets, _TOLERANCE)
    position = targets + found.offset
    inside = torch.stack([(p >= 0) & (p <= n - 1) for p, n in zip(position, shape, strict=True)]).all(0)
    return Inversion(found.offset.view_as(ddf), found.left.view_as(ddf), inside.view(shape))


def invert_transform(transform: Transform) -> tuple[Transform, list[tuple[Displacement, Inversion]]]:
    """The way back: every step inverted, the last one first.

    A displacement is inverted on its own grid, so the inverse of a registration is the inverse affine and then the
    inverse field on the fixed grid.

    Args:
        transform: of any number of steps.

    Returns:
        The inverse, and each displacement with its inversion, in its order.
    """
    steps: list[Affine | Displacement] = []
    inversions = []
    for step in reversed(transform.steps):
        if isinstance(step, Affine):
            steps.append(step.inverse())
        else:
            inversion = invert(torch.tensor(step.ddf))
            steps.append(Displacement(step.grid, inversion.ddf.numpy()))
            inversions.append((step, inversion))
    return Transform(tuple(steps)), inversions
