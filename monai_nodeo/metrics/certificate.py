# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The proof that comes with a deformation: folds, changes of volume, accuracy of the flow and of its inverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monai_nodeo.files import Displacement, Transform
from monai_nodeo.flows.field_inversion import Inversion, invert
from monai_nodeo.geometry.coordinates import lengths
from monai_nodeo.geometry.folds import count_folds
from monai_nodeo.geometry.jacobian import jacobian_slabs

if TYPE_CHECKING:  # figures of other tools' fields need neither a model nor MONAI
    from monai_nodeo.flows.flow import Flow

__all__ = ["Certificate", "Residual", "certify_field", "certify_flow", "certify_transform"]

_VOXELS = 100_000  # most, on a regular lattice, whose way is integrated again
_SMALL, _LARGE = 0.25, 4.0
_ACCURATE = 0.1  # voxels


@dataclass(frozen=True)
class Residual:
    """How far points are from where they should be.

    Attributes:
        voxels_mean: in voxels.
        voxels_quantile: its 99.9 % quantile.
        voxels_max: the largest one.
        mm_mean: the same in mm.
        mm_quantile: the same in mm.
        mm_max: the same in mm.
    """

    voxels_mean: float
    voxels_quantile: float
    voxels_max: float
    mm_mean: float
    mm_quantile: float
    mm_max: float

    @classmethod
    def of(cls, vectors: Tensor, to_mm: Tensor) -> Residual:
        """Of vectors (D, N) in voxels, and the matrix (3, D) that takes them to mm."""
        if not vectors.numel():
            return cls(*[0.0] * 6)
        both = [lengths(x.double(), 0) for x in (vectors, to_mm.to(vectors) @ vectors)]
        rank = max(1, round(0.999 * vectors.shape[1]))
        return cls(*[f for x in both for f in (x.mean().item(), x.kthvalue(rank).values.item(), x.max().item())])


@dataclass(frozen=True)
class Certificate:
    """What was found.

    Attributes:
        cells: of the grid.
        folded_cells: those in which any difference shows a fold; 0 for a digital diffeomorphism.
        folded_by_difference: cells that fold by each of the differences, forward or backward along each axis, 4 in 2D
            and 8 in 3D, and there by the two central tetrahedra.
        smallest_volume: smallest determinant of the Jacobian, forward differences, and the voxel where it is.
        largest_volume: the largest one.
        small_percent: share of the voxels whose volume becomes less than a quarter.
        large_percent: share of those whose volume becomes more than four times as much.
        solver_error: against half the step of the solver; None for a field that no flow is known of.
        inverse: where a point is after the way there and back, as far as this stays in the field of view. Of a flow by
            integration, of another field by its fixed point.
        file_error_voxels: largest difference between the displacement on disk and the flow; None before it is written.
    """

    cells: int
    folded_cells: int
    folded_by_difference: tuple[int, ...]
    smallest_volume: tuple[float, tuple[int, ...]]
    largest_volume: tuple[float, tuple[int, ...]]
    small_percent: float
    large_percent: float
    inverse: Residual
    solver_error: Residual | None = None
    file_error_voxels: float | None = None

    @property
    def invertible(self) -> bool:
        """Whether no cell folds and the inverse is within a tenth of a voxel for 99.9 % of the voxels."""
        return self.folded_cells == 0 and self.inverse.voxels_quantile <= _ACCURATE

    @property
    def verdict(self) -> str:
        """The certificate in a line."""
        folds = "no cell folds by any difference"
        if self.folded_cells:
            folds = f"{self.folded_cells} of {self.cells} cells fold"
        name = "Invertible" if self.invertible else "Not invertible"
        text = f"{name}: {folds}, inverse within {self.inverse.voxels_quantile:.2g} voxels"
        if self.solver_error is not None:
            text += f", solver error {self.solver_error.voxels_max:.2g} voxels"
        return f"{text}; volumes change by {self.smallest_volume[0]:.2g} to {self.largest_volume[0]:.2g}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"verdict": self.verdict, "invertible": self.invertible, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """The inverse of :py:meth:`to_dict`."""
        given = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        for name in ("smallest_volume", "largest_volume"):
            given[name] = (given[name][0], tuple(given[name][1]))
        for name in ("inverse", "solver_error"):
            given[name] = None if given[name] is None else Residual(**given[name])
        return cls(**given | {"folded_by_difference": tuple(given["folded_by_difference"])})


@torch.no_grad()
def certify_flow(flow: Flow, ddf: Tensor) -> Certificate:
    """The certificate of a flow.

    Solver and inverse are looked at for at most 100,000 voxels, on a regular lattice.

    Args:
        flow: with a solver that has a ``finer()``.
        ddf: its displacement of its grid, (D, *spatial), voxels.
    """
    to_mm = torch.from_numpy(flow.grid.affine[:3, : len(ddf)].copy())
    voxels = _lattice(ddf)
    start = flow.to_phi(voxels)
    there = flow.carried(start, [0.0, 1.0])[-1]
    finer = getattr(flow.solver, "finer", None)
    error = None
    if finer is not None:
        better = flow.with_solver(finer()).carried(start, [0.0, 1.0])[-1]
        error = Residual.of(flow.to_voxels(there) - flow.to_voxels(better), to_mm)
    inside = (there.abs() <= 1 + 1e-5).all(0)  # the border too, whatever its rounding
    back = flow.inverse.carried(there[:, inside], [0.0, 1.0])[-1]
    residual = Residual.of(flow.to_voxels(back) - flow.to_voxels(start[:, inside]), to_mm)
    return Certificate(**_volumes(ddf), inverse=residual, solver_error=error)


@torch.no_grad()
def certify_field(ddf: Tensor, to_mm: Tensor, inversion: Inversion | None = None) -> Certificate:
    """The certificate of a displacement of any origin.

    Args:
        ddf: (D, *spatial), voxels, tensor axis order.
        to_mm: (3, D), a step in voxels -> mm.
        inversion: of the ddf, if it is known already.
    """
    inversion = inversion or invert(ddf)
    residual = Residual.of(inversion.left[:, inversion.inside], to_mm)
    return Certificate(**_volumes(ddf), inverse=residual)


def certify_transform(transform: Transform) -> list[Certificate]:
    """The certificate of each displacement, in the order in which points go through them."""
    return [
        certify_field(
            torch.tensor(step.ddf, dtype=torch.float32),
            torch.tensor(step.grid.affine[:3, : step.grid.spatial_dims], dtype=torch.float32),
        )
        for step in transform.steps
        if isinstance(step, Displacement)
    ]


def _lattice(ddf: Tensor) -> Tensor:
    """Every n-th voxel along each axis, (N, D)."""
    shape = ddf.shape[1:]
    step = max(1, math.ceil((math.prod(shape) / _VOXELS) ** (1 / len(shape))))
    axes = [torch.arange(min(step // 2, n - 1), n, step, device=ddf.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _volumes(ddf: Tensor) -> dict[str, Any]:
    if min(ddf.shape[1:]) < 2:  # nothing can be differentiated along such an axis
        nowhere = (1.0, (0,) * len(ddf))
        return {
            "cells": 0,
            "folded_cells": 0,
            "folded_by_difference": (),
            "smallest_volume": nowhere,
            "largest_volume": nowhere,
            "small_percent": 0.0,
            "large_percent": 0.0,
        }
    cells = tuple(n - 1 for n in ddf.shape[1:])
    extremes, counts, passed = [(math.inf, 0), (-math.inf, 0)], [0, 0], 0
    for part in jacobian_slabs(ddf[None]):
        values = part.flatten()
        for side, place in enumerate((values.argmin(), values.argmax())):
            value = values[place].item()
            if value < extremes[0][0] if side == 0 else value > extremes[1][0]:
                extremes[side] = value, passed + int(place)
        counts[0] += int((values < _SMALL).sum())
        counts[1] += int((values > _LARGE).sum())
        passed += len(values)
    folded, by_difference = count_folds(ddf[None])
    smallest, largest = ((value, _unravelled(place, cells)) for value, place in extremes)
    return {
        "cells": passed,
        "folded_cells": int(folded),
        "folded_by_difference": tuple(by_difference[0].tolist()),
        "smallest_volume": smallest,
        "largest_volume": largest,
        "small_percent": 100 * counts[0] / passed,
        "large_percent": 100 * counts[1] / passed,
    }


def _unravelled(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index), tuple(shape)))
