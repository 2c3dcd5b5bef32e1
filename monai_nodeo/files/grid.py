# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The voxel grid that a file is stored on."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage

from monai_nodeo.files.images import open_stored
from monai_nodeo.files.lps import RAS_TO_LPS, itk_place
from monai_nodeo.files.nifti_place import ALIGNED, nifti_place

__all__ = [
    "ImageGrid",
    "PathLike",
    "displacement_from_lps",
    "displacement_to_lps",
    "lps_component",
    "grid_from_itk",
    "grid_of",
    "itk_geometry",
    "parts",
    "vectors_as_axes",
    "vectors_of",
    "warn_of_leaving",
    "within_slice",
]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

# ITK stores orthonormal direction cosines. A skew this small changes a displacement by half a percent at most.
_MAX_SKEW = 5e-3
_AT_A_TIME = 2**18  # vectors that are worked on in double precision
_HALF = 0.5 + 1e-6  # voxels from the centre of a voxel to its side, and rounding
_LEAVES = 1e-3  # of the thickness of a slice: a displacement that leads out of it by more is none of the slice


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """The voxel grid that a file is stored on, such as the fixed image's.

    Args:
        affine: (4, 4), voxel indices -> RAS mm, without shear.
        shape: the array in the file, (X, Y, Z), (X, Y, 1) for a slice in a 3D header or (X, Y) for a true 2D image.
        sform_code: NIfTI xform code to write with the sform, greater than 0.
        qform_code: the same for the qform.

    Raises:
        ValueError: when ITK could not hold the grid: sheared, singular, or a true 2D image off the world's x-y plane.

    Example:
        >>> grid = ImageGrid(np.diag([1.0, 1.0, 2.0, 1.0]), (9, 11, 1))
        >>> grid.spatial_dims, grid.spatial_shape
        (2, (9, 11))
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    sform_code: int = ALIGNED
    qform_code: int = ALIGNED

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        _check_geometry(self.affine, self.shape)
        if min(self.sform_code, self.qform_code) < 1:  # a reader ignores an affine of code 0
            raise ValueError(f"sform and qform code are {self.sform_code} and {self.qform_code}, expected 1 or more.")

    @classmethod
    def from_file(cls, path: PathLike) -> ImageGrid:
        """The grid of the image in a file of any format; but for DICOM, only the header is read.

        Raises:
            ValueError: when the file is no image, one of many volumes, or has a grid that ITK cannot hold.
        """
        stored = open_stored(path)
        if stored.spatial_shape is None:
            raise ValueError(
                f"{path}: shape {stored.shape} is {len(stored.shape)}D, a series; expected an image, extract one "
                "volume first."
            )
        return _named(path, stored.affine, stored.spatial_shape, stored.sform_code, stored.qform_code)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape in memory: the stored one without the third axis of a slice."""
        return self.shape[:2] if self.shape[2:] == (1,) else self.shape

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along the axes in memory, mm."""
        return tuple(np.linalg.norm(self.affine[:3, : self.spatial_dims], axis=0).tolist())

    @property
    def spatial_dims(self) -> int:
        """D, the number of axes in memory."""
        return len(self.spatial_shape)

    @property
    def world(self) -> np.ndarray:
        """RAS mm of the voxels of a volume or slice, (*shape, 3)."""
        index = np.moveaxis(np.indices(self.shape), 0, -1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def share_inside(self, points: np.ndarray) -> float:
        """Share of points, (N, 3) RAS mm, that lie in a voxel of the grid; a true 2D grid has no third coordinate."""
        back = np.linalg.inv(self.affine)
        index = (points @ back[:3, :3].T + back[:3, 3])[:, : len(self.shape)]
        return float(((index > -_HALF) & (index < np.array(self.shape) - 1 + _HALF)).all(1).mean())

    @property
    def voxel_to_lps(self) -> np.ndarray:
        """(components in the file, D): a displacement in voxels -> LPS mm."""
        components = len(self.shape)
        return (RAS_TO_LPS @ self.affine[:3, :3])[:components, : self.spatial_dims]


def parts(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of the first axis of a grid that are worked on at a time, so that doubles of it all are never held."""
    step = max(1, _AT_A_TIME // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def displacement_to_lps(ddf: np.ndarray, grid: ImageGrid, dtype: np.typing.DTypeLike = np.float64) -> np.ndarray:
    """A ddf in voxels (D, *spatial) as ITK's vectors in LPS mm, (*spatial, components in the file).

    They are worked out in double precision, and laid out in memory as in a file of NIfTI.
    """
    components = len(grid.voxel_to_lps)
    lps = np.empty((components, *ddf.shape[:0:-1]), dtype).T
    for component in range(components):
        lps_component(ddf, grid, component, lps[..., component])
    return lps


def lps_component(ddf: np.ndarray, grid: ImageGrid, component: int, out: np.ndarray) -> np.ndarray:
    """One component of `displacement_to_lps`, written into an array (*spatial) of any type."""
    weights = grid.voxel_to_lps[component]
    used = np.flatnonzero(weights)  # along the axes of space, as of most grids, one
    for part in parts(ddf.shape[1:]):
        out[part] = sum(weights[axis] * ddf[axis, part] for axis in used)
    return out


def displacement_from_lps(name: PathLike, lps: np.ndarray, grid: ImageGrid) -> np.ndarray:
    """The inverse of `displacement_to_lps`, float32.

    Raises:
        ValueError: when vectors of a slice point out of it; names the file.
    """
    reversed_axes = lps.T  # as files have them, so that nothing is copied
    back = np.linalg.pinv(grid.voxel_to_lps)
    found = np.empty((len(back), *reversed_axes.shape[1:]), np.float32)
    for part in parts(reversed_axes.shape[1:]):
        some = reversed_axes[:, part].reshape(len(reversed_axes), -1)
        ddf = back @ some
        if lps.shape[-1] > grid.spatial_dims:
            out_of_plane = np.abs(grid.voxel_to_lps @ ddf - some).max()
            if out_of_plane > _LEAVES * np.linalg.norm(grid.affine[:3, 2]):
                raise ValueError(
                    f"{name}: the displacement leaves the slice by up to {out_of_plane:.3g} mm, "
                    "expected none: a 2D ddf cannot hold it."
                )
        found[:, part] = ddf.reshape(-1, *found[:, part].shape[1:])
    return np.moveaxis(found.T, -1, 0)


def within_slice(name: PathLike, lps: np.ndarray, grid: ImageGrid) -> np.ndarray:
    """Vectors (*spatial, components) of a grid without what leads out of it, if it is a slice; that is logged."""
    if lps.shape[-1] == grid.spatial_dims:
        return lps
    normal = RAS_TO_LPS @ np.cross(*grid.affine[:3, :2].T)
    normal /= np.linalg.norm(normal)
    out = lps @ normal
    warn_of_leaving(name, grid, float(np.abs(out).max()))
    return lps - out[..., None] * normal


def warn_of_leaving(name: PathLike, grid: ImageGrid, distance: float) -> None:
    """Log that a field leads out of its slice by so many mm, if that is more than rounding."""
    if distance > _LEAVES * np.linalg.norm(grid.affine[:3, 2]):
        logger.warning(
            "%s: the transform leaves the slice by up to %.3g mm; this field holds the part within it, a .h5 all.",
            name,
            distance,
        )


def warn_off_slice(name: PathLike, points: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> None:
    """Log that points do not lie in a slice, but beside it by more than half its thickness.

    Args:
        name: of the points.
        points: (N, 3) RAS mm.
        affine: (4, 4), voxel -> RAS mm.
        shape: as it is stored, (X, Y, 1) for a slice; a true 2D image has no third coordinate, a volume no plane.
    """
    if tuple(shape[2:]) != (1,):
        return
    back = np.linalg.inv(affine)[2]
    away = np.abs(points @ back[:3] + back[3])
    count = int((away > _HALF).sum())
    if count:
        logger.warning(
            "warning: %s: %d of %d points lie off the plane of the slice, by up to %.3g mm; they are taken as if they "
            "were in it.",
            name,
            count,
            len(points),
            away.max() * np.linalg.norm(affine[:3, 2]),
        )


def vectors_of(field: sitk.Image) -> np.ndarray:
    """Vectors of an image of ITK, (*shape, components): a view in the order of the tensor axes."""
    return vectors_as_axes(sitk.GetArrayViewFromImage(field))


def vectors_as_axes(values: np.ndarray) -> np.ndarray:
    """Vectors as ITK's arrays have them, (*reversed shape, components): a view in the order of the tensor axes."""
    return values.transpose(*reversed(range(values.ndim - 1)), values.ndim - 1)


def itk_geometry(grid: ImageGrid) -> dict[str, list[float]]:
    """Origin, spacing and direction of a grid, as ITK names them, in as many coordinates as the stored array has axes.

    Example:
        >>> itk_geometry(ImageGrid(np.diag([2.0, 1.0, 3.0, 1.0]), (9, 11, 13)))["Spacing"]
        [2.0, 1.0, 3.0]
    """
    dims = len(grid.shape)
    lps = RAS_TO_LPS @ grid.affine[:3]
    spacing = np.linalg.norm(lps[:, :dims], axis=0)
    return {
        "Origin": lps[:dims, 3].tolist(),
        "Spacing": spacing.tolist(),
        "Direction": (lps[:dims, :dims] / spacing).ravel().tolist(),
    }


def grid_from_itk(name: PathLike, image: sitk.Image) -> ImageGrid:
    """The grid of an image of ITK with two or three axes, the inverse of `itk_geometry`; errors begin with the name."""
    return _named(name, itk_place(image), image.GetSize())


def _check_geometry(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"the stored shape is {shape}, expected (X, Y, Z), (X, Y, 1) for a slice or (X, Y).")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError(
            f"the affine is no finite 4 x 4 voxel -> RAS mm matrix with last row 0 0 0 1: {affine.tolist()}"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() == 0:
        raise ValueError(f"the affine has a voxel size of 0 ({spacing} mm); repair the header.")
    cosines = affine[:3, :3] / spacing
    skew = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if skew > _MAX_SKEW:
        raise ValueError(
            f"the axes of the grid are not at right angles (cosine {skew:.3g}, at most {_MAX_SKEW:g}) and ITK holds no "
            "sheared grids; resample the image to a grid without shear."
        )
    if len(shape) == 2 and np.abs(cosines[2, :2]).max() > _MAX_SKEW:
        raise ValueError(
            "the image is 2D and its plane is not the world's x-y plane, so ITK would lose the third coordinate; "
            "store it as (X, Y, 1)."
        )


def grid_of(path: PathLike, image: SpatialImage, shape: tuple[int, ...]) -> ImageGrid:
    """The grid of a file's header, with its errors named after the file."""
    try:
        affine, *codes = nifti_place(str(path), image, Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _named(path, affine, shape, *codes)


def _named(path: PathLike, *grid: Any) -> ImageGrid:
    """A grid whose errors begin with the name of its file."""
    try:
        return ImageGrid(*grid)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
