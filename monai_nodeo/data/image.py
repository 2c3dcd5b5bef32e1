# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""An image from anywhere, in one form, or an error that says why not."""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from monai_nodeo.data.pair import PairError
from monai_nodeo.data.placement import affine_3d
from monai_nodeo.files import ImageFileError, StoredImage, open_stored, stored_array, stored_itk, stored_nibabel
from monai_nodeo.files.itk_python import is_itk_python, sitk_of_itk_python

__all__ = ["Image", "as_image"]

Image = str | PathLike[str] | np.ndarray | Tensor | SpatialImage | sitk.Image  # or one of itk, whose type is not known

_SINGULAR = 1e-6  # determinant of the axes' unit vectors
_FLOAT32_EXACT = 2**24  # whole numbers below it survive float32
_COLOURS = 3


def as_image(
    value: Image, key: str = "image", spatial_dims: int | None = None, min_size: int = 1, labels: bool = False
) -> MetaTensor:
    """An image from anywhere, in one form.

    Args:
        value: a path; an image of nibabel, SimpleITK or itk, perhaps with channels, such as the colours of a picture
            (transparency is left out); an array (X, Y, Z) or (X, Y) without channels; or a tensor with
            channels first, (C, X, Y, Z) or (C, X, Y). Plain ones have voxels of 1 mm. The affine of a MetaTensor
            is taken as RAS mm, or as LPS mm if its meta says so.
        key: what errors call it.
        spatial_dims: 3 or 2; by default what it is. A third axis of one voxel makes a slice.
        min_size: fewest voxels along an axis.
        labels: the values are ids; those that float32 cannot hold are refused.

    Returns:
        (C, *spatial), float32, finite, on the CPU. Its ``affine`` is 4 x 4, voxel -> RAS mm, and its meta holds, for a
        writer, "original_affine" (4, 4), "spatial_shape" (the shape as stored, with the third axis of a slice),
        "filename_or_obj", "original_dtype" and the NIfTI codes of its space.

    Raises:
        PairError: when it is none.
    """
    if spatial_dims not in (None, 2, 3):
        raise PairError(f"spatial_dims is {spatial_dims}, expected 2 for slices or 3 for volumes.")
    name = f"{key} {fspath(value)}" if isinstance(value, str | PathLike) else key
    try:
        stored = _stored(value, name)
    except (ImageFileError, FileNotFoundError) as error:
        raise _of_file(key, error) from error
    if stored.dtype.kind not in "biuf":
        raise PairError(f"{name}: the voxels are {stored.dtype}; expected real numbers.")
    spatial = _spatial_shape(name, stored)
    _check_shape(key, name, spatial, spatial_dims)
    dims = 3 if len(spatial) == 3 and spatial[2] > 1 else 2
    if min(spatial[:dims]) < min_size:
        advice = "crop less or resample to smaller voxels"
        if dims == 3:
            advice += "; if these are all the slices of a scan, give one with more or register single slices"
        raise PairError(
            f"{name}: {min(spatial[:dims])} voxels along an axis of {spatial[:dims]}, expected at least {min_size}; "
            f"{advice}."
        )
    _check_affine(name, stored.affine)
    try:
        values = stored.load()
        if labels:
            _check_ids(name, values)
        values = values.reshape(*spatial[:dims], stored.channels)
        if stored.channels == _COLOURS + 1 and stored.dtype == np.uint8:  # transparency shows nothing
            values = values[..., :_COLOURS]
        voxels = _finite(name, values)
    except ImageFileError as error:
        raise _of_file(key, error) from error
    # The same keys as MONAI's own readers, so that its other transforms find what they expect.
    meta = {
        MetaKeys.ORIGINAL_AFFINE: stored.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(spatial),
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        MetaKeys.SPACE: SpaceKeys.RAS,
        "original_dtype": stored.dtype.name,
        "sform_code": stored.sform_code,
        "qform_code": stored.qform_code,
    }
    if stored.path:
        meta[ImageMetaKey.FILENAME_OR_OBJ] = stored.path
    first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels, -1, 0)))
    return MetaTensor(first, affine=torch.from_numpy(stored.affine.copy()), meta=meta)


def _of_file(key: str, error: Exception) -> PairError:
    """An error that begins with the path of a file, if there is one."""
    return PairError(f"{key} {error}".replace(f"{key} : ", f"{key}: ", 1))


def _stored(value: Image, name: str) -> StoredImage:
    if isinstance(value, str | PathLike):
        return open_stored(value)
    if isinstance(value, SpatialImage):
        if value.affine is None:
            raise PairError(f"{name}: the image has no affine, which says where its voxels are; give it one.")
        return stored_nibabel(value.get_filename() or "", value)
    if isinstance(value, sitk.Image):
        return stored_itk("", value)
    if is_itk_python(value):
        return stored_itk("", sitk_of_itk_python(value))
    if isinstance(value, Tensor):
        return _stored_tensor(value, name)
    if isinstance(value, np.ndarray):
        return stored_array(value)
    raise PairError(
        f"{name}: a {type(value).__name__} is no image; give a path, an array (X, Y, Z), a tensor (C, X, Y, Z) or an "
        "image of nibabel, SimpleITK or itk."
    )


def _stored_tensor(tensor: Tensor, name: str) -> StoredImage:
    if tensor.ndim not in (3, 4) or not tensor.numel():
        raise PairError(
            f"{name}: a tensor of shape {tuple(tensor.shape)}; expected channels first and no batch axis, (C, X, Y, Z) "
            "or (C, X, Y)."
        )
    values = tensor.detach().cpu()
    if values.dtype == torch.bfloat16:  # numpy has no such type
        values = values.float()
    affine, path, codes = np.eye(4), "", (2, 2)
    stored_dims = tensor.ndim - 1  # a plain slice is a true 2D image
    if isinstance(tensor, MetaTensor):
        stored_dims = 3
        affine = affine_3d(tensor).numpy()
        path = str(tensor.meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))
        sform_code, qform_code = (int(tensor.meta.get(f"{form}_code", 0)) for form in ("sform", "qform"))
        sform_code = sform_code or qform_code or 2  # as of a file, where 0 is none
        codes = sform_code, qform_code or sform_code
        values = values.as_subclass(Tensor)
    array = np.moveaxis(values.numpy(), 0, -1)
    spatial = (*array.shape[:-1], *[1] * (stored_dims + 1 - array.ndim))
    shape = (*spatial, *[1] * (4 - len(spatial)), array.shape[-1]) if array.shape[-1] > 1 else spatial
    picture = len(spatial) == 2
    return StoredImage(path, affine, shape, array.dtype, lambda: array.reshape(shape), *codes, picture=picture)


def _spatial_shape(name: str, stored: StoredImage) -> tuple[int, ...]:
    shape = stored.spatial_shape
    if shape is None:
        raise PairError(
            f"{name}: shape {stored.shape} is {len(stored.shape)}D, a series; expected an image, extract one volume "
            "first."
        )
    return shape


def _check_shape(key: str, name: str, shape: tuple[int, ...], spatial_dims: int | None) -> None:
    if len(shape) < 2 or min(shape) < 1:
        raise PairError(f"{name}: shape {shape} is no image; expected (X, Y, Z), or (X, Y) or (X, Y, 1) for a slice.")
    is_slice = len(shape) == 2 or 1 in shape
    if spatial_dims and is_slice != (spatial_dims == 2):
        found, expected = ("slice", "volume") if is_slice else ("volume", "slice")
        raise PairError(
            f"{name}: shape {shape} is a {found}, and this run registers {expected}s (spatial_dims={spatial_dims}); "
            f"give a {expected}, or {found}s in a run of their own."
        )
    if is_slice and shape[2:] not in ((), (1,)):
        raise PairError(
            f"{name}: a slice of shape {shape}; expected (X, Y) or (X, Y, 1), move the thin axis to the end."
        )


def _check_affine(name: str, affine: np.ndarray) -> None:
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    usable = affine.shape == (4, 4) and np.isfinite(affine).all() and lengths.min() > 0
    if not usable or abs(np.linalg.det(axes / lengths)) < _SINGULAR:
        raise PairError(
            f"{name}: the affine {affine.tolist()} is singular or not finite and gives the voxels no place in space; "
            "repair the header's sform or qform."
        )


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """The voxels as a contiguous float32 array, all of them finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: infinite, and found below
        voxels = np.ascontiguousarray(values, dtype=np.float32)
    bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if bad:
        raise PairError(
            f"{name}: {bad} of {voxels.size} voxels are NaN or infinite in float32; replace them, for example by 0."
        )
    return voxels


def _check_ids(name: str, values: np.ndarray) -> None:
    """Labels that float32 would take for others."""
    too_large = values[(values >= _FLOAT32_EXACT) | (values <= -_FLOAT32_EXACT)]
    if too_large.size and np.abs(too_large.astype(np.float64)).max() < np.finfo(np.float32).max:
        largest = max(int(too_large.max()), int(too_large.min()), key=abs)
        raise PairError(f"{name}: label {largest} is not below {_FLOAT32_EXACT}; renumber the labels.")
