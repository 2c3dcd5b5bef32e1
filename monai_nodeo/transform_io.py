# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Results as files: NIfTI images on the fixed grid and ITK displacement fields, in and out.

The only place that converts between a ddf in voxels (tensor axis order) and millimetres in ITK's LPS space, and the
only place that knows how a 2D grid is stored. An `ImageGrid` says both:

=================  ============  ================================  =====================================
stored image       array shape   ddf                               displacement file
=================  ============  ================================  =====================================
3D volume          (X, Y, Z)     (3, X, Y, Z)                      (X, Y, Z, 1, 3)
slice, 3D header   (X, Y, 1)     (2, X, Y)                         (X, Y, 1, 1, 3), in the header's space
true 2D image      (X, Y)        (2, X, Y)                         (X, Y, 1, 1, 2)
=================  ============  ================================  =====================================
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.utils import convert_to_numpy
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import SpatialImage

__all__ = ["ImageGrid", "atomic_path", "read_displacement", "write_displacement", "write_image", "write_labels"]

# ITK stores orthonormal direction cosines. A skew this small changes a displacement by half a percent at most.
_MAX_SKEW = 5e-3
_ALIGNED = 2  # NIFTI_XFORM_ALIGNED_ANAT: the code for an affine of unknown origin
_VECTOR = 1007  # NIFTI_INTENT_VECTOR
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_LABEL_TYPES = (np.uint8, np.int16, np.int32)  # every NIfTI reader knows these


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
    sform_code: int = _ALIGNED
    qform_code: int = _ALIGNED

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
        """The grid of the image in a file that nibabel reads; only the header is read."""
        image = _load(path)
        shape = image.shape[:3] if set(image.shape[3:]) <= {1} else image.shape  # axes of length 1 hold nothing
        return _grid_of(path, image, shape)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape in memory: the stored one without the third axis of a slice."""
        return self.shape[:2] if self.shape[2:] == (1,) else self.shape

    @property
    def spatial_dims(self) -> int:
        """D, the number of axes in memory."""
        return len(self.spatial_shape)

    @property
    def voxel_to_lps(self) -> np.ndarray:
        """(components in the file, D): a displacement in voxels -> LPS mm."""
        components = len(self.shape)
        return (_RAS_TO_LPS @ self.affine[:3, :3])[:components, : self.spatial_dims]


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Write a file as a whole or not at all.

    Yields a path of the same name in a hidden folder beside the target; the file there takes the target's place when
    the block ends, and is removed when the block fails in any way. An older file stays until then.

    Args:
        path: the target; its folder must exist.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with atomic_path(folder / "note.txt") as partial:
        ...     _ = partial.write_text("complete")
        >>> [file.name for file in folder.iterdir()]
        ['note.txt']
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; make it first.")
    # A folder, not a temporary name: what a killed run leaves does not match "*.nii.gz", and the file gets the usual
    # permissions, which mkstemp would narrow.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        partial = Path(folder) / target.name
        yield partial
        os.replace(partial, target)


def write_displacement(path: PathLike, ddf: NdarrayOrTensor, grid: ImageGrid) -> None:
    """Write a ddf as an ITK displacement field: NIfTI, 5D, float32, intent vector (1007), LPS mm, pull-back.

    Note:
        ITK drops the third axis of every one-slice vector NIfTI, its own included, and refuses the file where that axis
        carries the geometry (a coronal slice). For an (X, Y, 1) grid, hand it the values and the space::

            values = nibabel.load(path).get_fdata()[:, :, :, 0]
            field = sitk.GetImageFromArray(values.transpose(2, 1, 0, 3), isVector=True)
            field.CopyInformation(sitk.ReadImage(fixed_path))

    Args:
        path: target, .nii or .nii.gz.
        ddf: (D, *grid.spatial_shape), voxels, tensor axis order: fixed voxel x samples the moving image at x + ddf(x).
        grid: the fixed grid. Its stored shape decides between two and three components for D = 2.

    Raises:
        ValueError: when the ddf is not on the grid or not finite, or the path is not a NIfTI name.
    """
    values = _checked(path, "ddf", ddf, (grid.spatial_dims, *grid.spatial_shape))
    lps = np.einsum("cd,d...->...c", grid.voxel_to_lps, values)
    volume = (*grid.shape, 1)[:3]
    _save(path, lps.astype(np.float32).reshape(*volume, 1, lps.shape[-1]), grid, intent="vector")


def read_displacement(path: PathLike) -> tuple[np.ndarray, ImageGrid]:
    """Read an ITK displacement field, the inverse of `write_displacement`.

    Args:
        path: NIfTI file with intent vector (1007), (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), LPS mm.

    Returns:
        The ddf, float32, (D, *grid.spatial_shape), voxels, tensor axis order; and its grid.

    Raises:
        ValueError: when the file is no such field, or a one-slice field that points out of its slice.
    """
    image = _load(path)
    _check_itk_layout(path, image)
    grid = _grid_of(path, image, image.shape[: image.shape[4]])
    try:
        lps = np.asarray(image.dataobj, dtype=np.float64)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: the voxels cannot be read, the file looks damaged ({error}).") from error
    lps = lps.reshape(*grid.spatial_shape, -1)
    if not np.isfinite(lps).all():
        raise ValueError(f"{path}: the displacement holds NaN or infinite values.")
    ddf = np.einsum("dc,...c->d...", np.linalg.pinv(grid.voxel_to_lps), lps)
    if lps.shape[-1] > grid.spatial_dims:
        _check_in_plane(path, ddf, lps, grid)
    return ddf.astype(np.float32), grid


def write_image(path: PathLike, image: NdarrayOrTensor, grid: ImageGrid) -> None:
    """Write intensities, or any real-valued map, as float32 NIfTI on a grid.

    Args:
        path: target, .nii or .nii.gz.
        image: (*grid.spatial_shape), without channels; the third axis of a slice is put back.
        grid: the fixed grid.

    Raises:
        ValueError: when the image is not on the grid or not finite, or the path is not a NIfTI name.
    """
    values = _checked(path, "image", image, grid.spatial_shape)
    _save(path, values.astype(np.float32).reshape(grid.shape), grid)


def write_labels(path: PathLike, labels: NdarrayOrTensor, grid: ImageGrid) -> None:
    """Write a label map as NIfTI on a grid, in the first of uint8, int16 and int32 that holds its values.

    Args:
        path: target, .nii or .nii.gz.
        labels: (*grid.spatial_shape), whole numbers of any dtype, without channels.
        grid: the fixed grid.

    Raises:
        ValueError: when the labels are not whole numbers or not on the grid, or the path is not a NIfTI name.
    """
    values = _checked(path, "labels", labels, grid.spatial_shape)
    if not np.array_equal(values, np.round(values)):
        raise ValueError(f"{path}: labels hold fractions, expected whole numbers; warp them with nearest neighbours.")
    low, high = values.min(), values.max()
    for dtype in _LABEL_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return _save(path, values.astype(dtype).reshape(grid.shape), grid)
    raise ValueError(f"{path}: labels from {low} to {high} do not fit into int32; renumber them.")


def _save(path: PathLike, data: np.ndarray, grid: ImageGrid, intent: str = "none") -> None:
    if not os.fspath(path).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: results are NIfTI files, expected a name that ends with .nii.gz or .nii.")
    # A fresh header: the fixed image's scaling, display range and extensions are not those of the new values.
    image = nib.Nifti1Image(data, grid.affine)
    # The same affine in both forms: nibabel and ITK do not always prefer the same one.
    image.set_sform(grid.affine, grid.sform_code)
    image.set_qform(grid.affine, grid.qform_code)
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent)
    with atomic_path(path) as partial:
        nib.save(image, partial)


def _checked(path: PathLike, name: str, array: NdarrayOrTensor, shape: tuple[int, ...]) -> np.ndarray:
    """The array on the host, after it was found to have the shape and finite values that float32 holds."""
    values: np.ndarray = convert_to_numpy(array)
    if values.shape != shape:
        raise ValueError(
            f"{path}: {name} has shape {values.shape}, expected {shape} on this grid; "
            "a batch axis, or the channel axis of an image, has to go."
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False)).all()
    if not finite:
        raise ValueError(f"{path}: {name} holds NaN, infinite or overflowing values; nothing was written.")
    return values


def _load(path: PathLike) -> SpatialImage:
    """Header and lazy voxels; FileNotFoundError comes from nibabel as it is, naming the file."""
    try:
        image = nib.load(path)
    except (EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path}: not an image that nibabel reads ({error}).") from error
    if not isinstance(image, SpatialImage):
        raise ValueError(f"{path}: a {type(image).__name__} has no voxel grid, expected an image.")
    return image


def _check_geometry(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"the stored shape is {shape}, expected (X, Y, Z), (X, Y, 1) for a slice or (X, Y).")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError(f"the affine is no finite 4 x 4 voxel -> RAS mm matrix with last row 0 0 0 1:\n{affine}")
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


def _grid_of(path: PathLike, image: SpatialImage, shape: tuple[int, ...]) -> ImageGrid:
    """The grid of a file's header, with its errors named after the file."""
    try:
        if not isinstance(image.header, Nifti1Header):
            return ImageGrid(image.affine, shape)
        unit = image.header.get_xyzt_units()[0]
        if unit not in ("mm", "unknown"):
            raise ValueError(f"the spatial unit in the header is {unit!r}, expected 'mm'; rescale the affine to mm.")
        return ImageGrid(image.affine, shape, *_xform_codes(image.header, image.affine))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _xform_codes(header: Nifti1Header, affine: np.ndarray) -> tuple[int, int]:
    """Codes of sform and qform to write with the affine, which nibabel took from the sform if that has a code.

    A qform that holds another space than the affine does not lend its code to it.
    """
    qform, qform_code = header.get_qform(coded=True)
    sform_code = int(header["sform_code"]) or qform_code or _ALIGNED
    if qform is None or not np.allclose(qform, affine, rtol=0, atol=1e-3):
        qform_code = sform_code
    return sform_code, qform_code


def _check_itk_layout(path: PathLike, image: SpatialImage) -> None:
    def refuse(found: str, expected: str) -> ValueError:
        return ValueError(f"{path} is no ITK displacement field: {found}, expected {expected}.")

    shape = image.shape
    if not isinstance(image, Nifti1Pair):
        raise refuse(f"its type is {type(image).__name__}", "NIfTI")
    if len(shape) != 5 or shape[3] != 1:
        raise refuse(f"its shape is {shape}", "(X, Y, Z, 1, 3) or (X, Y, 1, 1, 2)")
    if shape[4] != 3 and shape[2:] != (1, 1, 2):
        raise refuse(f"it has {shape[4]} components at shape {shape}", "3, or 2 at (X, Y, 1, 1, 2)")
    intent = int(image.header["intent_code"])
    if intent != _VECTOR:
        raise refuse(f"its intent code is {intent}", f"{_VECTOR} (vector)")


def _check_in_plane(path: PathLike, ddf: np.ndarray, lps: np.ndarray, grid: ImageGrid) -> None:
    out_of_plane = np.abs(np.einsum("cd,d...->...c", grid.voxel_to_lps, ddf) - lps).max()
    if out_of_plane > 1e-3 * np.linalg.norm(grid.affine[:3, 2]):
        raise ValueError(
            f"{path}: the displacement leaves the slice by up to {out_of_plane:.3g} mm, "
            "expected none: a 2D ddf cannot hold it."
        )
