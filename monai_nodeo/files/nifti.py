# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI on a grid: images, label maps and ITK displacement fields, in and out."""

from __future__ import annotations

import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from isal.igzip import IGzipFile
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike

from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.grid import (
    ImageGrid,
    PathLike,
    displacement_from_lps,
    displacement_to_lps,
    grid_of,
    lps_component,
    parts,
)
from monai_nodeo.files.images import load_voxels, open_nibabel

__all__ = [
    "check_image_target",
    "displacement_error",
    "intent_code",
    "has_nifti_name",
    "read_displacement",
    "read_values",
    "save_nifti",
    "write_displacement",
    "write_image",
    "write_labels",
]

_COMPRESSION = 1  # of ISA-L: the size that the lowest level of zlib has, in a seventh of its time
_VECTOR = 1007  # NIFTI_INTENT_VECTOR
_LABEL_TYPES = (np.uint8, np.int16, np.int32)  # every NIfTI reader knows these


def write_displacement(path: PathLike, ddf: ArrayLike, grid: ImageGrid) -> None:
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
    lps = displacement_to_lps(values, grid, np.float32)
    volume = (*grid.shape, 1)[:3]
    save_nifti(path, lps.reshape(*volume, 1, lps.shape[-1]), grid, intent="vector")


def read_displacement(path: PathLike) -> tuple[np.ndarray, ImageGrid]:
    """Read an ITK displacement field, the inverse of `write_displacement`.

    Args:
        path: NIfTI file with intent vector (1007), (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), LPS mm.

    Returns:
        The ddf, float32, (D, *grid.spatial_shape), voxels, tensor axis order; and its grid.

    Raises:
        ValueError: when the file is no such field, or a one-slice field that points out of its slice.
    """
    image = open_nibabel(path, path)
    _check_itk_layout(path, image)
    grid = grid_of(path, image, image.shape[: image.shape[4]])
    lps = read_values(path, image, None).reshape(*grid.spatial_shape, -1)
    return displacement_from_lps(path, lps, grid), grid


def displacement_error(path: PathLike, ddf: np.ndarray, grid: ImageGrid) -> float:
    """Largest difference between a displacement on disk and what it is to be, along an axis of space, in voxels.

    Args:
        path: that `write_displacement` wrote, .nii.gz.
        ddf: (D, *grid.spatial_shape), voxels, tensor axis order.
        grid: its grid.
    """
    image = open_nibabel(path, path)
    largest = 0.0
    for component in range(image.shape[-1]):  # one at a time in memory
        found = np.asarray(image.dataobj[..., component]).reshape(grid.spatial_shape)
        difference = lps_component(ddf, grid, component, np.empty(found.shape[::-1], np.float32).T)
        difference -= found
        largest = max(largest, float(difference.max()), -float(difference.min()))
    return largest / min(grid.spacing)


def write_image(path: PathLike, image: ArrayLike, grid: ImageGrid, dtype: np.typing.DTypeLike = np.float32) -> None:
    """Write intensities, or any real-valued map, as NIfTI on a grid.

    Args:
        path: target, .nii or .nii.gz.
        image: (*grid.spatial_shape), without channels; the third axis of a slice is put back.
        grid: the fixed grid.
        dtype: type of the image that this one was made of. Whole numbers of up to 32 bits are rounded to and kept
            within its range; all others are written as float32.

    Raises:
        ValueError: when the image is not on the grid or not finite, or the path is not a NIfTI name.
    """
    values = _checked(path, "image", image, grid.spatial_shape)
    whole = np.dtype(dtype)
    if whole.kind in "iu" and whole.itemsize <= 4:
        limits = np.iinfo(whole)
        rounded = np.empty(values.shape, whole)
        for part in parts(values.shape):
            rounded[part] = np.rint(values[part].astype(np.float64)).clip(limits.min, limits.max)
        values = rounded
    else:
        values = values.astype(np.float32, copy=False)
    save_nifti(path, values.reshape(grid.shape), grid)


def write_labels(path: PathLike, labels: ArrayLike, grid: ImageGrid) -> None:
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
            return save_nifti(path, values.astype(dtype).reshape(grid.shape), grid)
    raise ValueError(f"{path}: labels from {low} to {high} do not fit into int32; renumber them.")


def read_values(path: PathLike, image: SpatialImage, dtype: np.typing.DTypeLike | None = np.float64) -> np.ndarray:
    """Voxels of an opened image, scaled as its header says; without a type, in that of the file if nothing is scaled.

    Raises:
        ValueError: when the file is damaged or a value is not finite.
    """
    values = load_voxels(path, lambda: np.asarray(image.dataobj, dtype=dtype))
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: the displacement holds NaN or infinite values.")
    return values


def intent_code(image: SpatialImage) -> int:
    """What the values of an image are, by NIfTI's number; 0, nothing, in other formats."""
    return int(image.header["intent_code"]) if isinstance(image, Nifti1Pair) else 0


def has_nifti_name(path: PathLike) -> bool:
    """Whether a file is NIfTI by its name."""
    return os.fspath(path).endswith((".nii", ".nii.gz"))


def check_image_target(path: PathLike) -> None:
    """Refuse a target that no image can be written to, before there is one.

    Raises:
        FileNotFoundError: when its folder does not exist.
        ValueError: when the path is not a NIfTI name.
    """
    if not has_nifti_name(path):
        raise ValueError(f"{path}: results are NIfTI files, expected a name that ends with .nii.gz or .nii.")
    check_folder(path)


def save_nifti(
    path: PathLike,
    data: np.ndarray,
    grid: ImageGrid,
    intent: str = "none",
    steps: tuple[Sequence[float], str] = ((), "unknown"),
) -> None:
    """Write an array as it is, with the affine and the codes of a grid.

    Args:
        path: target, .nii or .nii.gz.
        data: (*grid.shape, *further axes), of a type that NIfTI holds.
        grid: the space.
        intent: what the values are, as NIfTI calls it.
        steps: distances along further axes, and their unit.

    Raises:
        ValueError: when the path is not a NIfTI name.
    """
    check_image_target(path)
    # A fresh header: the fixed image's scaling, display range and extensions are not those of the new values.
    image = nib.Nifti1Image(data, grid.affine, dtype=data.dtype)  # as it is, also 64 bits
    # The same affine in both forms: nibabel and ITK do not always prefer the same one.
    image.set_sform(grid.affine, grid.sform_code)
    image.set_qform(grid.affine, grid.qform_code)
    image.header.set_xyzt_units("mm", steps[1])
    if steps[0]:
        image.header.set_zooms((*image.header.get_zooms()[:3], *steps[0]))
    image.header.set_intent(intent)
    with atomic_path(path) as partial, partial.open("wb") as file:
        if partial.suffix == ".gz":
            with IGzipFile("", "wb", _COMPRESSION, file, mtime=0) as compressed:  # the same bytes each time
                image.to_stream(compressed)
        else:
            image.to_stream(file)


def _checked(path: PathLike, name: str, array: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The array on the host, after it was found to have the shape and finite values that float32 holds."""
    if hasattr(array, "detach"):  # a tensor of torch, which is not imported here
        array = array.detach().cpu()
    values = np.asarray(array)
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
