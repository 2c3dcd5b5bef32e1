# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The rigid pose of volumes of one grid, by Gauss-Newton steps on the gradients of the reference.

The inverse compositional form of Lucas and Kanade's method (Baker and Matthews, IJCV 2004): the gradients are those of
the reference, which stays, so that a step costs one interpolation of the image at some points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, spline_filter
from scipy.spatial.transform import Rotation

__all__ = ["RigidSearch", "resample_rigid"]

_LEVELS = ((4.0, 4.0), (0.7, 1.0))  # blur (standard deviation) and distance of the points, voxels
_ITERATIONS = 30
_STILL = 1e-3  # voxels: a smaller step is the last one
_FARTHEST = 4.0  # voxels that one step may go
_OUTLIER = 4.685  # standard deviations from which on a residual does not count: Tukey's biweight
_DEVIATION = 1.4826  # standard deviations in a median of absolute values
_FAINTEST = 0.1  # of the reference's contrast
_FEWEST = 24  # points of a level, three for each unknown


class RigidSearch:
    """Finds where the things in a reference are in other images of its grid.

    At some points of the reference, those where it changes most, an image is compared with it up to gain and offset;
    points that differ much, as where a brain becomes active, do not count.

    Args:
        reference: (X, Y, Z).
        affine: (4, 4), voxel -> mm, of the reference and of the images.
        near: the images lie within about a voxel of where the search starts.

    Attributes:
        sees: whether the reference has points enough to tell a motion.
    """

    def __init__(self, reference: NDArray, affine: NDArray, near: bool = False) -> None:
        self.contrast = float(reference.std())
        levels = [_Level.of(reference, affine, *level) for level in _LEVELS[-1 if near else 0 :]]
        self._levels = [level for level in levels if len(level.columns) >= _FEWEST]
        self.sees = bool(self._levels)

    def pose(self, image: NDArray, start: NDArray) -> NDArray:
        """(4, 4), mm: point of the reference -> its place in the image.

        Args:
            image: (X, Y, Z), not the same everywhere.
            start: (4, 4), where to begin.
        """
        scaled = image * np.float32(self.contrast / image.std())
        for level in self._levels:
            start = level.refined(scaled, start)
        return start


@dataclass(frozen=True, eq=False)
class _Level:
    """Points of a blurred reference.

    Attributes:
        affine: (4, 4), voxel -> mm.
        blur: standard deviations along the axes, voxels.
        voxels: (3, N), where the points are.
        columns: (N, 8), derivatives of the reference there by shift (mm) and rotation around the middle of the grid
            (radians), the reference itself, and 1.
        size: mm of a voxel.
        radius: mm from the middle of the grid to its corners.
    """

    affine: NDArray
    blur: NDArray
    voxels: NDArray
    columns: NDArray
    size: float
    radius: float

    @classmethod
    def of(cls, reference: NDArray, affine: NDArray, blur: float, distance: float) -> _Level:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        size = float(np.prod(spacing) ** (1 / 3))
        blurs = blur * size / spacing
        steps = np.maximum(np.rint(distance * size / spacing), 1).astype(int)
        blurred = gaussian_filter(reference, blurs, mode="nearest")
        slopes = np.stack(np.gradient(blurred)).reshape(3, -1)
        lattice = [np.arange(min(step // 2, n - 1), n, step) for step, n in zip(steps, reference.shape, strict=True)]
        voxels = np.stack(np.meshgrid(*lattice, indexing="ij")).reshape(3, -1)
        at = np.ravel_multi_index(tuple(voxels), reference.shape)
        gradient = np.linalg.inv(affine[:3, :3]).T @ slopes[:, at]
        strength = np.linalg.norm(gradient, axis=0)
        kept = (strength > strength.mean()) & _within(voxels, reference.shape, blurs)
        voxels, gradient = voxels[:, kept], gradient[:, kept].T.astype(np.float64)
        middle = (np.array(reference.shape) - 1) / 2
        points = (affine[:3, :3] @ (voxels - middle[:, None])).T
        values = blurred.ravel()[at[kept]].astype(np.float64)
        columns = np.column_stack([gradient, np.cross(points, gradient), values, np.ones_like(values)])
        radius = float(np.linalg.norm(affine[:3, :3] @ middle))
        return cls(affine, blurs, voxels, columns, size, radius)

    def refined(self, image: NDArray, pose: NDArray) -> NDArray:
        """A better pose."""
        blurred = gaussian_filter(image, self.blur, mode="nearest")
        splines = spline_filter(blurred, order=3, output=np.float32, mode="mirror")
        to_middle = _shifted(self.affine[:3, :3] @ ((np.array(image.shape) - 1) / 2) + self.affine[:3, 3])
        for _ in range(_ITERATIONS):
            way = np.linalg.inv(self.affine) @ pose @ self.affine
            places = way[:3, :3] @ self.voxels + way[:3, 3:]
            seen = _within(places, image.shape, self.blur).astype(np.float64)
            values = map_coordinates(splines, places, output=np.float64, order=3, mode="mirror", prefilter=False)
            change = _robust_solution(self.columns, values, seen)
            if change[6] < _FAINTEST:  # the image does not show what the reference shows
                break
            step = change[:6] / change[6]
            far = float(np.linalg.norm(step[:3]) + np.linalg.norm(step[3:]) * self.radius) / self.size
            step *= min(1.0, _FARTHEST / max(far, _STILL))
            moved = np.eye(4)
            moved[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix()
            moved[:3, 3] = step[:3]
            pose = pose @ to_middle @ np.linalg.inv(moved) @ np.linalg.inv(to_middle)
            if far < _STILL:
                break
        return pose


def resample_rigid(image: NDArray, affine: NDArray, pose: NDArray, outside: float) -> tuple[NDArray, NDArray]:
    """An image as it was before it moved, by cubic B-splines.

    Args:
        image: (X, Y, Z).
        affine: (4, 4), voxel -> mm.
        pose: (4, 4), mm, point of the reference -> its place in the image.
        outside: value further than half a voxel outside the image.

    Returns:
        The image on the same grid, (X, Y, Z), float32, with no value beyond those of the image; and where it is known.
    """
    way = np.linalg.inv(affine) @ pose @ affine
    splines = spline_filter(image, order=3, output=np.float32, mode="mirror")
    moved = affine_transform(
        splines, way[:3, :3], way[:3, 3], output=np.float32, order=3, mode="mirror", prefilter=False
    )
    moved = moved.clip(image.min(), image.max())
    axes = np.ogrid[tuple(slice(n) for n in image.shape)]
    places = [sum(way[i, j] * axes[j] for j in range(3)) + way[i, 3] for i in range(3)]
    known = _within(places, image.shape, [-0.5] * 3)
    return np.where(known, moved, np.float32(outside)), known


def _robust_solution(columns: NDArray, values: NDArray, seen: NDArray) -> NDArray:
    """Least squares in which points that differ much from the others do not count."""
    weights, solution = seen, np.zeros(columns.shape[1])
    for _ in range(2):
        weighted = columns * weights[:, None]
        solution = np.linalg.lstsq(weighted.T @ columns, weighted.T @ values, rcond=None)[0]
        residual = np.abs(values - columns @ solution)
        scale = _OUTLIER * _DEVIATION * float(np.median(residual)) + np.finfo(np.float32).tiny
        weights = seen * (1 - np.minimum(residual / scale, 1) ** 2) ** 2
    return solution


def _within(places: Sequence[NDArray] | NDArray, shape: Sequence[int], margins: Sequence[float] | NDArray) -> NDArray:
    """Whether voxel positions are so far inside a grid."""
    inside = np.ones(np.broadcast_shapes(*(np.shape(place) for place in places)), bool)
    for place, n, margin in zip(places, shape, margins, strict=True):
        inside &= (place >= margin) & (place <= n - 1 - margin)
    return inside


def _shifted(by: NDArray) -> NDArray:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix
