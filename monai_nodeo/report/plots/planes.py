# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Planes through a registered pair, turned to RAS for the eye."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike, NDArray

from monai_nodeo.geometry.jacobian import jacobian_determinant

__all__ = ["Plane", "cut", "grey_window"]

_VIEWS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # RAS axes that point right and up
_SIDES = ("LR", "PA", "IS")
_BRIGHTEST = 0.995  # quantile
_SAMPLE = 500_000  # voxels that a quantile is taken from


class Plane(NamedTuple):
    """One plane of a pair: axis 0 is drawn to the right, axis 1 up.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        images: name -> grey values from 0 to 1, (X, Y).
        labels: name -> label map, (X, Y).
        ddf: displacement within the plane in voxels, (2, X, Y).
        length: of the whole displacement, in the unit of the spacing, (X, Y).
        determinant: of the Jacobian, in the cells between the voxels, (X - 1, Y - 1).
        spacing: voxel size along X and Y.
        sides: of the patient, at the left and right edge ("LR") and at the bottom and top ("PA").
        uncertainty: of the displacement, in the unit of the spacing, (X, Y).
    """

    name: str
    images: dict[str, NDArray]
    labels: dict[str, NDArray]
    ddf: NDArray
    length: NDArray
    determinant: NDArray
    spacing: tuple[float, float]
    sides: tuple[str, str]
    uncertainty: NDArray | None = None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in the unit of the spacing."""
        return self.length.shape[0] * self.spacing[0], self.length.shape[1] * self.spacing[1]


def cut(
    images: Mapping[str, ArrayLike],
    ddf: ArrayLike,
    affine: ArrayLike | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
    uncertainty: ArrayLike | None = None,
) -> list[Plane]:
    """Cut a volume in three planes, or take the one plane of a slice.

    The planes go through the centre of mass of the first image, or through the middle without images.

    Args:
        images: name -> array or tensor, (*spatial), 2D or 3D, on one grid.
        ddf: displacement in voxels, (D, *spatial), channel i along axis i.
        affine: voxel -> RAS millimetres, (4, 4). Without it the axes of the array are taken for the world's.
        labels: name -> label map, (*spatial).
        uncertainty: of the displacement, in the unit of the affine, (*spatial).

    Raises:
        ValueError: when the shapes do not fit.
    """
    field = as_array(ddf)
    pictures = {name: as_array(image) for name, image in images.items()}
    maps = {name: as_array(label) for name, label in (labels or {}).items()}
    shape = field.shape[1:]
    if (
        len(shape) not in (2, 3)
        or len(field) != len(shape)
        or any(i.shape != shape for i in (*pictures.values(), *maps.values()))
    ):
        found = ", ".join(str(i.shape) for i in (*pictures.values(), *maps.values()))
        raise ValueError(
            "expected images of one shape, 2D or 3D, and a ddf (D, *spatial), "
            f"got images {found or 'none'} and a ddf {field.shape}."
        )
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    orientation = io_orientation(matrix)
    windows = {name: grey_window(image) for name, image in pictures.items()}
    centre = _centre(next(iter(pictures.values()), None), shape)

    planes = []
    for name, (across, up) in _VIEWS.items():
        (normal,) = {0, 1, 2} - {across, up}
        cutter = _Cutter(orientation, (across, up, normal), centre)
        if len(shape) == 2 and cutter.axes[2] != 2:
            continue
        sizes = voxel_sizes(matrix)
        planes.append(
            Plane(
                name,
                {key: _windowed(cutter(image), *windows[key]) for key, image in pictures.items()},
                {key: cutter(label) for key, label in maps.items()},
                np.stack(
                    [sign * cutter(field[axis]) for axis, sign in zip(cutter.axes[:2], cutter.signs, strict=True)]
                ),
                np.sqrt(sum((sizes[axis] * cutter(component)) ** 2 for axis, component in enumerate(field))),
                cutter.turned(_determinant(field, cutter.axes[2], centre)),
                (sizes[cutter.axes[0]], sizes[cutter.axes[1]]),
                (_SIDES[across], _SIDES[up]),
                None if uncertainty is None else cutter(as_array(uncertainty)),
            )
        )
    return planes


def grey_window(image: NDArray) -> tuple[float, float]:
    """Grey values to draw as black and as white: the lowest one, and the 99.5 % quantile."""
    sample = image.ravel()[:: max(1, image.size // _SAMPLE)]
    return float(image.min()), float(np.quantile(sample, _BRIGHTEST))


def as_array(values: ArrayLike) -> NDArray:
    """An array of numbers of an array or a tensor on any device; not copied where that is possible."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


class _Cutter:
    """Takes one plane out of stored volumes: (*spatial) -> (X, Y), float64."""

    def __init__(self, orientation: NDArray, world_axes: tuple[int, int, int], centre: list[int]) -> None:
        stored = {int(target): axis for axis, (target, _) in enumerate(orientation)}
        self.axes = tuple(stored[axis] for axis in world_axes)  # of the array: across, up, normal
        self.signs = tuple(int(orientation[axis, 1]) for axis in self.axes[:2])
        self.at = centre[self.axes[2]]

    def __call__(self, volume: NDArray) -> NDArray:
        # no take(): it copies a volume that is stored in Fortran order as a whole
        plane = volume if volume.ndim == 2 else np.moveaxis(volume, self.axes[2], 0)[self.at]
        return self.turned(plane.astype(np.float64))

    def turned(self, plane: NDArray) -> NDArray:
        """A plane of the array, its axes in stored order, as it is drawn."""
        upright = plane if self.axes[0] < self.axes[1] else plane.T
        return np.ascontiguousarray(upright[:: self.signs[0], :: self.signs[1]])


def _determinant(field: NDArray, normal: int, centre: list[int]) -> NDArray:
    """Jacobian determinant in the cells on a plane, from the two layers of voxels around them."""
    slab = field
    if field.shape[0] == 3:
        at = min(centre[normal], field.shape[normal + 1] - 2)
        slab = np.moveaxis(np.moveaxis(field, normal + 1, 0)[at : at + 2], 0, normal + 1)
    cells = jacobian_determinant(torch.from_numpy(np.ascontiguousarray(slab, dtype=np.float64))[None])[0].numpy()
    return cells.squeeze(normal) if cells.ndim == 3 else cells


def _centre(image: NDArray | None, shape: tuple[int, ...]) -> list[int]:
    """Index of the centre of the grey values; the middle without an image or in an image without contrast."""
    middle = [size // 2 for size in shape] + [0] * (3 - len(shape))
    if image is None or image.min() == image.max():
        return middle
    axes = range(image.ndim)
    low = float(image.min())
    for axis in axes:
        profile = image.sum(axis=tuple(a for a in axes if a != axis), dtype=np.float64)
        weight = profile - low * image.size / len(profile)
        middle[axis] = round(float(np.average(np.arange(len(profile)), weights=weight)))
    return middle


def _windowed(plane: NDArray, low: float, high: float) -> NDArray:
    return ((plane - low) / max(high - low, float(np.finfo(np.float32).tiny))).clip(0, 1)
