# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From a data-list row to images in memory: `LoadPaird` reads and checks the files.

Every problem of the input is a `PairError` that names the file, what was found and what to do, raised before anything
is optimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from torch import Tensor

from monai_nodeo.data.pair import (
    IMAGE_KEYS,
    LABEL_KEYS,
    LANDMARK_KEYS,
    MASK_KEYS,
    PATH_KEYS,
    PairError,
    source_name,
    stored_grid,
)
from monai_nodeo.data.placement import SAME_GRID_VOXELS, to_voxels, voxel_sides, world_corners
from monai_nodeo.files import ImageFileError, StoredImage, open_stored, read_points

__all__ = ["LoadPairD", "LoadPairDict", "LoadPaird"]

_SINGULAR = 1e-6  # determinant of the axes' unit vectors
_FLOAT32_EXACT = 2**24  # whole numbers below it survive float32
_LABEL_ROUNDING = 1e-4


class LoadPaird(Transform):
    """Replace the paths of a row by what the files hold, after checking it. See `pairs` for the keys.

    "fixed" and "moving" must be there; labels and landmarks come in pairs or not at all, masks one by one. Other keys
    pass. An image becomes a MetaTensor, float32, (1, *spatial) with D spatial axes; a slice may be stored as (X, Y, 1)
    or (X, Y). Its ``affine`` stays 4 x 4, voxel -> RAS mm, and its meta holds, for a writer, "original_affine" (4, 4),
    "spatial_shape" (the shape in the file, with the third axis of a slice if it is stored), "filename_or_obj",
    "original_dtype" and the NIfTI codes of its space. A mask is 1 where the file is greater than 0, else 0. Landmarks
    become float64 tensors (N, 3), RAS mm.

    Args:
        spatial_dims: D, 3 for volumes, 2 for slices.
        min_size: fewest voxels along an axis.

    Raises:
        PairError: when a file is missing, damaged, no single-channel image of D axes, too small, constant or not finite
            or has a singular affine; labels are not whole numbers or masks exclude everything, or either is not on the
            grid of its image; or landmarks differ in number or lie outside their image.
    """

    def __init__(self, spatial_dims: int = 3, min_size: int = 8) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims!r}, expected 2 or 3.")
        self.spatial_dims = spatial_dims
        self.min_size = min_size

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Load one row.

        Args:
            data: paths under the keys of `pairs`.

        Returns:
            A new dict with tensors in their place.
        """
        row = {
            key: value for key, value in data.items() if key in IMAGE_KEYS or key not in PATH_KEYS or value is not None
        }
        _check_keys(row)
        for key in (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS):
            if key in row:
                row[key] = self._load(key, row[key])
        _check_writable_grid(row["fixed"])
        for side, image_key in enumerate(IMAGE_KEYS):
            image, label_key, mask_key = row[image_key], LABEL_KEYS[side], MASK_KEYS[side]
            _check_contrast(image_key, image)
            if label_key in row:
                _check_grid_of_image(label_key, row[label_key], image)
                row[label_key] = _whole_numbers(label_key, row[label_key])
            if mask_key in row:
                _check_grid_of_image(mask_key, row[mask_key], image)
                row[mask_key] = _ones_and_zeros(mask_key, row[mask_key])
        return row | _landmarks(row)

    def _load(self, key: str, path: Any) -> MetaTensor:
        name = f"{key} {path}"
        if not isinstance(path, str | PathLike):
            raise PairError(f"{name}: a {type(path).__name__} is not a path; give the path of an image.")
        try:
            stored = open_stored(path)
            _check_shape(key, name, stored.shape, self.spatial_dims)
            spatial = stored.shape[: self.spatial_dims]
            if min(spatial) < self.min_size:
                advice = "crop less or resample to smaller voxels"
                if self.spatial_dims == 3:
                    advice += "; if these are all the slices of a scan, give one with more or register single slices"
                raise PairError(
                    f"{name}: {min(spatial)} voxels along an axis of {spatial}, expected at least {self.min_size}; "
                    f"{advice}."
                )
            _check_affine(name, stored.affine)
            voxels = _finite(name, stored)
        except (ImageFileError, FileNotFoundError) as error:
            raise PairError(f"{key} {error}") from error
        # The same keys as MONAI's own readers, so that its other transforms find what they expect.
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: fspath(path),
            MetaKeys.ORIGINAL_AFFINE: stored.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(stored.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MetaKeys.SPACE: SpaceKeys.RAS,
            "original_dtype": stored.dtype.name,
            "sform_code": stored.sform_code,
            "qform_code": stored.qform_code,
        }
        return MetaTensor(
            torch.from_numpy(voxels).reshape(1, *spatial), affine=torch.from_numpy(stored.affine.copy()), meta=meta
        )


LoadPairD = LoadPairDict = LoadPaird


def _check_keys(row: Mapping[str, Any]) -> None:
    for key in IMAGE_KEYS:
        if row.get(key) is None or row[key] == "":
            raise PairError(f'{key}: no path was given; give one as "{key}".')
    for keys, what, both in (
        (LABEL_KEYS, "labels", "both label maps"),
        (LANDMARK_KEYS, "landmarks", "both lists of points"),
    ):
        given = [key for key in keys if key in row]
        if len(given) == 1:
            (missing,) = set(keys) - set(given)
            raise PairError(
                f"{given[0]} {row[given[0]]}: {what} came without {missing}; give {both}, or none to do without."
            )


def _check_writable_grid(fixed: MetaTensor) -> None:
    """The results are written on the fixed grid: better to know now whether it can be."""
    try:
        stored_grid(fixed)
    except ValueError as error:
        raise PairError(f"{source_name('fixed', fixed)}: {error}") from error


def _check_shape(key: str, name: str, shape: tuple[int, ...], spatial_dims: int) -> None:
    if len(shape) > 3:
        raise PairError(
            f"{name}: shape {shape} is {len(shape)}D, a series or an image with channels; expected one real number a "
            "voxel, extract one volume or channel first."
        )
    if len(shape) < 2 or min(shape) < 1:
        raise PairError(f"{name}: shape {shape} is no image; expected (X, Y, Z), or (X, Y) or (X, Y, 1) for a slice.")
    is_slice = len(shape) == 2 or 1 in shape
    # The fixed image is loaded first: where it has passed, not the settings are wrong but the pair.
    if key != "fixed" and is_slice != (spatial_dims == 2):
        found, expected = ("slice", "volume") if is_slice else ("volume", "slice")
        raise PairError(
            f"{name}: shape {shape} is a {found}, but the fixed image is a {expected}; "
            "give only volumes or only slices."
        )
    if spatial_dims == 3 and is_slice:
        raise PairError(
            f"{name}: shape {shape} is a slice, but spatial_dims=3 registers volumes; "
            "give a volume, or slices in a run of their own (of the bundle: lay inference_2d.json over inference.json)."
        )
    if spatial_dims == 2 and not is_slice:
        raise PairError(
            f"{name}: shape {shape} is a volume, but spatial_dims=2 registers slices; "
            "give a slice, or volumes in a run of their own (of the bundle: use inference.json without "
            "inference_2d.json)."
        )
    if spatial_dims == 2 and shape[2:] not in ((), (1,)):
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


def _finite(name: str, stored: StoredImage) -> np.ndarray:
    """The voxels as a contiguous float32 array, all of them finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: infinite, and found below
        voxels = np.ascontiguousarray(stored.load(), dtype=np.float32)
    bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if bad:
        raise PairError(
            f"{name}: {bad} of {voxels.size} voxels are NaN or infinite in float32; replace them, for example by 0."
        )
    return voxels


def _check_contrast(key: str, image: MetaTensor) -> None:
    low = float(image.min())
    if low == float(image.max()):
        raise PairError(
            f"{source_name(key, image)}: every voxel is {low:g}, so there is nothing to register; give another image."
        )


def _check_grid_of_image(key: str, label: MetaTensor, image: MetaTensor) -> None:
    """Labels and masks belong to their image voxel by voxel: unlike a pair, they are never resampled to fit."""
    name, image_name = source_name(key, label), image.meta[ImageMetaKey.FILENAME_OR_OBJ]
    advice = "resample it to the image's grid (nearest neighbour)."
    if label.shape != image.shape:
        raise PairError(
            f"{name}: shape {tuple(label.shape[1:])} differs from {tuple(image.shape[1:])} of its image {image_name}; "
            f"{advice}"
        )
    shift = world_corners(label.affine, label.shape[1:]) - world_corners(image.affine, image.shape[1:])
    apart = float(torch.linalg.vector_norm(shift, dim=0).max())
    if apart > SAME_GRID_VOXELS * min(voxel_sides(image.affine, image.ndim - 1)):
        raise PairError(
            f"{name}: its affine puts a corner {apart:.3g} mm from that of its image {image_name}; {advice}"
        )


def _whole_numbers(key: str, label: MetaTensor) -> Tensor:
    rounded = torch.round(label)
    fractions = int(((label - rounded).abs() > _LABEL_ROUNDING).sum())
    if fractions:
        raise PairError(
            f"{source_name(key, label)}: {fractions} voxels are no whole numbers; "
            "expected a label map, perhaps this is the image or labels that were resampled linearly."
        )
    largest = float(rounded.abs().max())
    if largest >= _FLOAT32_EXACT:
        raise PairError(
            f"{source_name(key, label)}: label {largest:.0f} is not below {_FLOAT32_EXACT}; renumber the labels."
        )
    return rounded


def _ones_and_zeros(key: str, mask: MetaTensor) -> Tensor:
    counted = (mask > 0).to(mask.dtype)
    if not counted.any():
        raise PairError(
            f"{source_name(key, mask)}: the mask excludes everything, no voxel is greater than 0; "
            "it has to be greater than 0 where the image counts."
        )
    return counted


def _landmarks(row: Mapping[str, Any]) -> dict[str, Tensor]:
    """The points of both images, as many of one as of the other, all of them within their image."""
    if LANDMARK_KEYS[0] not in row:
        return {}
    points = {key: _points(key, row[key], row[image]) for key, image in zip(LANDMARK_KEYS, IMAGE_KEYS, strict=True)}
    counts = [len(found) for found in points.values()]
    if counts[0] != counts[1]:
        names = [f"{key} {row[key]}" for key in LANDMARK_KEYS]
        raise PairError(
            f"{names[1]} has {counts[1]} points and {names[0]} has {counts[0]}; give the same points in the same order."
        )
    return points


def _points(key: str, path: Any, image: MetaTensor) -> Tensor:
    try:
        points = torch.from_numpy(read_points(path).ras)
    except FileNotFoundError as error:
        raise PairError(f"{key} {path}: there is no such file; check the path.") from error
    except (ValueError, OSError) as error:
        raise PairError(f"{key} {error}") from error
    voxels = to_voxels(points, image)
    size = torch.tensor(image.shape[1:])
    outside = ((voxels < -0.5) | (voxels > size - 0.5)).any(1).nonzero().flatten().tolist()
    if outside:
        first = outside[0]
        raise PairError(
            f"{key} {path}: {len(outside)} of {len(points)} points lie outside the image "
            f"{image.meta[ImageMetaKey.FILENAME_OR_OBJ]}, the first is point {first + 1} at voxel "
            f"{[round(x, 1) for x in voxels[first].tolist()]} of {tuple(image.shape[1:])}; points are LPS mm as in ITK "
            "and ANTs, change the sign of x and y of RAS points."
        )
    return points
