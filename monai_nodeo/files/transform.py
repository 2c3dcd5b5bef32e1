# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A spatial transform as the steps that take a point of the fixed image to its place in the moving image.

Files of any format are read and written by `files.transform_formats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files.grid import (
    ImageGrid,
    displacement_from_lps,
    displacement_to_lps,
    grid_from_itk,
    itk_geometry,
    parts,
    vectors_as_axes,
    vectors_of,
    warn_of_leaving,
    within_slice,
)
from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = ["Affine", "Displacement", "Transform"]


@dataclass(frozen=True, eq=False)
class Affine:
    """One matrix for all points.

    Args:
        matrix: (4, 4), RAS mm -> RAS mm, point of the fixed image -> point of the moving image.
        world_dims: coordinates of a point in the file, 2 for true 2D images.

    Raises:
        ValueError: when the matrix is singular or not finite.
    """

    matrix: np.ndarray
    world_dims: int = 3

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise ValueError(f"no finite 4 x 4 RAS mm -> RAS mm matrix with last row 0 0 0 1: {matrix.tolist()}")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise ValueError(f"the affine is singular and takes space to a plane: {matrix.tolist()}")
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    def inverse(self) -> Affine:
        """The way back."""
        inverse = np.linalg.inv(self.matrix)
        inverse[3] = 0, 0, 0, 1
        return Affine(inverse, self.world_dims)

    @cached_property
    def itk(self) -> sitk.AffineTransform:
        """The same for ITK."""
        dims = self.world_dims
        affine = sitk.AffineTransform(dims)
        lps = RAS_TO_LPS @ self.matrix[:3, :3] @ RAS_TO_LPS
        affine.SetMatrix(lps[:dims, :dims].ravel().tolist())
        affine.SetTranslation((RAS_TO_LPS @ self.matrix[:3, 3])[:dims].tolist())
        return affine

    @classmethod
    def from_itk(cls, transform: sitk.Transform) -> Affine:
        """The matrix of any linear transform of ITK: rigid, similarity, affine, translation, about any centre."""
        dims = transform.GetDimension()
        # What it does to the origin and the unit vectors says all, whatever its parameters are.
        origin, *axes = (np.array(transform.TransformPoint(p.tolist())) for p in np.eye(dims + 1, dims, -1))
        lps = np.eye(4)
        lps[:dims, :dims] = np.stack(axes, axis=1) - origin[:, None]
        lps[:dims, 3] = origin
        flip = np.diag([*np.diag(RAS_TO_LPS), 1.0])
        return cls(flip @ lps @ flip, dims)


@dataclass(frozen=True, eq=False)
class Displacement:
    """A displacement for every voxel of a grid; outside the grid points stay where they are.

    Args:
        grid: the grid, for a registration that of the fixed image.
        ddf: (D, *grid.spatial_shape), voxels of the grid, tensor axis order.

    Raises:
        ValueError: when the ddf is not on the grid.
    """

    grid: ImageGrid
    ddf: np.ndarray

    def __post_init__(self) -> None:
        expected = (self.grid.spatial_dims, *self.grid.spatial_shape)
        if np.shape(self.ddf) != expected:
            raise ValueError(f"the ddf has shape {np.shape(self.ddf)}, expected {expected} on this grid.")

    @property
    def world_dims(self) -> int:
        """Coordinates of a point in the file: 2 for true 2D images, 3 for volumes and slices in a 3D header."""
        return len(self.grid.shape)

    def itk_vectors(self, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Vectors in LPS mm as ITK's arrays have them, (*reversed grid.shape, components)."""
        size = (*self.grid.shape, self.world_dims)
        values = np.empty((*reversed(self.grid.shape), self.world_dims), dtype)
        of_axes = vectors_as_axes(values)
        for part in parts(self.grid.spatial_shape):
            of_axes[part] = displacement_to_lps(self.ddf[:, part], self.grid).reshape(-1, *size[1:])
        return values

    @cached_property
    def itk(self) -> sitk.Transform:
        """The same for ITK."""
        field = sitk.GetImageFromArray(self.itk_vectors(np.float64), isVector=True)
        for name, value in itk_geometry(self.grid).items():
            getattr(field, f"Set{name}")(value)
        return sitk.DisplacementFieldTransform(field)

    @classmethod
    def from_itk(cls, name: str, transform: sitk.DisplacementFieldTransform) -> Displacement:
        return cls.from_itk_field(name, transform.GetDisplacementField())

    @classmethod
    def from_itk_field(cls, name: str, field: sitk.Image) -> Displacement:
        """A field of vectors in LPS mm, as an image of ITK; errors begin with the name."""
        grid = grid_from_itk(name, field)
        lps = vectors_of(field)
        if not np.isfinite(lps).all():
            raise ValueError(f"{name}: the displacement holds NaN or infinite values.")
        return cls(grid, displacement_from_lps(name, lps.reshape(*grid.spatial_shape, -1), grid))


@dataclass(frozen=True, eq=False)
class Transform:
    """Steps that a point of the fixed image goes through, the first one first.

    A registration is a displacement on the fixed grid, then perhaps the affine start:
    ``Transform((Displacement(grid, ddf), Affine(matrix)))``. An image is sampled where its points arrive, so the moving
    image comes on to the fixed grid, while points go from the fixed image to the moving one.

    Args:
        steps: at least one.

    Raises:
        ValueError: without a step, or for steps of 2D and 3D worlds together.

    Example:
        >>> shift = Affine(np.array([[1, 0, 0, 2.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        >>> Transform((shift, shift)).map_points(np.zeros((1, 3)))
        array([[4., 0., 0.]])
    """

    steps: tuple[Affine | Displacement, ...]

    def __post_init__(self) -> None:
        worlds = {step.world_dims for step in self.steps}
        if len(worlds) != 1:
            raise ValueError(f"a transform needs steps of one world, 2D or 3D; found {sorted(worlds) or 'no step'}.")

    @classmethod
    def of_registration(cls, ddf: np.ndarray, grid: ImageGrid, affine: np.ndarray | None = None) -> Transform:
        """What a registration found.

        Args:
            ddf: (D, *spatial), voxels of the fixed grid, tensor axis order.
            grid: the fixed grid.
            affine: (4, 4) RAS mm, the affine start: fixed physical point -> moving physical point. The identity, to a
                millionth of a mm, is left out.
        """
        rests = affine is None or np.allclose(affine, np.eye(4), rtol=0, atol=1e-6)
        start = () if rests else (Affine(np.asarray(affine), len(grid.shape)),)
        return cls((Displacement(grid, ddf), *start))

    @property
    def world_dims(self) -> int:
        """Coordinates of a point, 2 or 3."""
        return self.steps[0].world_dims

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Where points of the fixed image lie in the moving image.

        Args:
            points: (N, 3) RAS mm; the third coordinate of a 2D world stays as it is.

        Returns:
            (N, 3) RAS mm.
        """
        return self.path(points)[-1]

    def path(self, points: np.ndarray) -> list[np.ndarray]:
        """Where points of the fixed image are before every step, and in the end.

        Args:
            points: (N, 3) RAS mm.

        Returns:
            One (N, 3) more than there are steps.
        """
        dims = self.world_dims
        places = [np.array(points, dtype=np.float64) @ RAS_TO_LPS]
        for step in self.steps:
            there = places[-1].copy()
            for point in there:
                point[:dims] = step.itk.TransformPoint(point[:dims].tolist())
            places.append(there)
        return [place @ RAS_TO_LPS for place in places]

    def matrix(self, name: str) -> np.ndarray:
        """All steps as one matrix, (4, 4) RAS mm, fixed physical point -> moving physical point.

        Args:
            name: what to call the transform in messages.

        Raises:
            ValueError: when a step is a displacement.
        """
        matrix = np.eye(4)
        for step in self.steps:
            if not isinstance(step, Affine):
                raise ValueError(
                    f"{name}: the transform holds a displacement field, expected linear steps only; a .h5 holds all."
                )
            matrix = step.matrix @ matrix
        return matrix

    def to_itk(self) -> sitk.CompositeTransform:
        """The same for ITK, which lets the step that was added last act first."""
        composite = sitk.CompositeTransform(self.world_dims)
        for step in reversed(self.steps):
            composite.AddTransform(step.itk)
        return composite

    @classmethod
    def from_itk(cls, name: str, transform: sitk.Transform) -> Transform:
        """The steps of a transform of ITK.

        Args:
            name: file, for messages.
            transform: composites of linear transforms and displacement fields, nested as you like.

        Raises:
            ValueError: for other kinds, such as B-splines.
        """
        composite = sitk.CompositeTransform(transform)
        composite.FlattenTransform()
        parts = [composite.GetNthTransform(i).Downcast() for i in range(composite.GetNumberOfTransforms())]
        steps = tuple(_step(name, part) for part in reversed(parts))
        try:
            return cls(steps)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def displacement_on(self, name: str, grid: ImageGrid) -> np.ndarray:
        """All steps as one displacement of a grid; of a slice, the part within its plane.

        Args:
            name: what to call the transform in messages.
            grid: where to sample it.

        Returns:
            (D, *grid.spatial_shape), float32, voxels of the grid, tensor axis order.

        Raises:
            ValueError: when the grid is of another world.
        """
        if len(grid.shape) != self.world_dims:
            raise ValueError(
                f"{name}: the transform is of a {self.world_dims}D world and the grid has shape {grid.shape}; "
                "give the reference that the transform was made for."
            )
        first, *others = self.steps
        if isinstance(first, Displacement) and grid is first.grid:
            matrices = [step.matrix for step in others if isinstance(step, Affine)]
            if len(matrices) == len(others):
                return _on_from_its_voxels(name, first, matrices) if matrices else first.ddf
        field = sitk.TransformToDisplacementField(
            self.to_itk(), sitk.sitkVectorFloat64, grid.shape, *itk_geometry(grid).values()
        )
        lps = vectors_of(field).reshape(*grid.spatial_shape, -1)
        return displacement_from_lps(name, within_slice(name, lps, grid), grid)


def _on_from_its_voxels(name: str, first: Displacement, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """A displacement and affines after it as one displacement of the same grid, (D, *spatial), float32."""
    grid, dims = first.grid, first.grid.spatial_dims
    space = grid.affine.copy()
    if dims < len(grid.shape):  # what leads out of a slice is left out at right angles
        normal = np.cross(*space[:3, :2].T)
        space[:3, 2] = normal / np.linalg.norm(normal)
    matrix = np.linalg.inv(space) @ reduce(lambda before, after: after @ before, matrices) @ space
    rows, offset = matrix[:dims, :dims], matrix[:dims, 3].reshape(-1, *[1] * dims)
    ddf, out = np.empty(first.ddf.shape, np.float32), 0.0
    for part in parts(grid.spatial_shape):
        voxels = np.indices(ddf[0, part].shape, np.float64)
        voxels[0] += part.start
        there = voxels + first.ddf[:, part]
        ddf[:, part] = np.tensordot(rows, there, 1) + offset - voxels
        if dims < len(grid.shape):
            out = max(out, float(np.abs(np.tensordot(matrix[2, :2], there, 1) + matrix[2, 3]).max()))
    warn_of_leaving(name, grid, out)
    return ddf


def _step(name: str, part: sitk.Transform) -> Affine | Displacement:
    if isinstance(part, sitk.DisplacementFieldTransform):
        return Displacement.from_itk(name, part)
    if part.IsLinear():
        try:
            return Affine.from_itk(part)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    raise ValueError(
        f"{name}: holds a {part.GetName()}; expected linear transforms and displacement fields only. "
        "SimpleITK's TransformToDisplacementField makes a field of it."
    )
