# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The inverse of a displacement field, voxel by voxel, and how far it is from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.files import Affine, Displacement, Transform
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import sample_points

__all__ = ["Inversion", "invert", "invert_transform"]

_TOLERANCE = 1e-3  # voxels: far below what interpolation of the field can say
_ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverse and its residual.

    Args:
        ddf: (D, *spatial), voxels, tensor axis order: ``y + ddf(y)`` is the point that the given field takes to y.
        residual: (*spatial), voxels: how far from y it takes that point in fact.
        inside: (*spatial), where that point lies on the grid; elsewhere the field is not known, and its border was
            continued.
        folds: voxels where the given field folds: it takes several points to one, and only one of them is found.
    """

    ddf: Tensor
    residual: Tensor
    inside: Tensor
    folds: int

    def figures(self) -> dict[str, Any]:
        """Residual in voxels (mean, 99.9 %, max) where the inverse is known, and how many voxels have none."""
        known = self.residual[self.inside]
        if not known.numel():
            known = self.residual.new_zeros(1)
        rank = max(1, round(0.999 * known.numel()))
        return {
            "residual_voxels_mean": known.double().mean().item(),
            "residual_voxels_99.9": known.kthvalue(rank).values.item(),
            "residual_voxels_max": known.max().item(),
            "voxels": self.residual.numel(),
            "voxels_not_converged": int((known > _TOLERANCE).sum()),
            "voxels_folded": self.folds,
            "voxels_from_outside": int((~self.inside).sum()),
        }


@torch.no_grad()
def invert(ddf: Tensor) -> Inversion:
    """Invert a displacement by fixed-point iteration, ``v <- v - s (v + u(y + v))``, with a step s for each voxel.

    The plain iteration (s = 1) runs away where the field stretches by more than two; halving the step wherever the
    residual would grow finds the inverse wherever the field does not fold. Where it folds there may be none: such
    voxels keep the point with the smallest residual, which tells them.

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
    inverse = -ddf.flatten(1)
    residual = inverse + _at(ddf, targets + inverse)
    size = torch.linalg.vector_norm(residual, dim=0)
    # Most voxels are done after a few steps, and only the others are looked at again.
    active = (size > _TOLERANCE).nonzero().squeeze(1)
    step = torch.ones_like(size[active])
    for _ in range(_ITERATIONS):
        if not len(active):
            break
        tried = inverse[:, active] - step * residual[:, active]
        left = tried + _at(ddf, targets[:, active] + tried)
        error = torch.linalg.vector_norm(left, dim=0)
        better = error < size[active]
        won = active[better]
        inverse[:, won], residual[:, won], size[won] = tried[:, better], left[:, better], error[better]
        step = torch.where(better, step, step / 2)
        open_ = (size[active] > _TOLERANCE) & (step > 1e-3)
        active, step = active[open_], step[open_]
    position = targets + inverse
    inside = torch.stack([(p >= 0) & (p <= n - 1) for p, n in zip(position, shape, strict=True)]).all(0)
    folds = int((jacobian_determinant(ddf[None]) <= 0).sum())
    return Inversion(inverse.view_as(ddf), size.view(shape), inside.view(shape), folds)


def invert_transform(transform: Transform) -> tuple[Transform, list[dict[str, Any]]]:
    """The way back: every step inverted, the last one first.

    A displacement is inverted on its own grid, so the inverse of a registration is the inverse affine and then the
    inverse field on the fixed grid.

    Args:
        transform: of any number of steps.

    Returns:
        The inverse, and the figures of each inverted displacement in its order.
    """
    steps: list[Affine | Displacement] = []
    figures = []
    for step in reversed(transform.steps):
        if isinstance(step, Affine):
            steps.append(step.inverse())
        else:
            inversion = invert(torch.tensor(step.ddf))
            steps.append(Displacement(step.grid, inversion.ddf.numpy()))
            figures.append(inversion.figures())
    return Transform(tuple(steps)), figures


def _at(ddf: Tensor, points: Tensor) -> Tensor:
    """A displacement (D, *spatial) at points (D, N) in voxels."""
    return sample_points(ddf[None], points[None])[0]
