# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images from files or memory, checked, as a `Pair`.

Every problem of the input is a `PairError` that names the file, what was found and what to do, raised before anything
is optimised.
"""

from __future__ import annotations

import logging
import os.path
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys
from torch import Tensor

from monai_nodeo.data.image import Image, as_image
from monai_nodeo.data.keys import IMAGE_KEYS, LABEL_KEYS, LANDMARK_KEYS, MASK_KEYS, PATH_KEYS, START_KEY, images_of
from monai_nodeo.data.pair import Pair, PairError, Scan, source_name, stored_grid
from monai_nodeo.data.placement import (
    SAME_GRID_VOXELS,
    affine_3d,
    on_grid_of,
    same_grid,
    to_voxels,
    voxel_map,
    voxel_sides,
    world_corners,
)
from monai_nodeo.files import read_points, warn_off_slice

__all__ = ["load_label", "load_pair"]

_WHOSE_GRID = {"moving": "fixed"} | {
    key: image for keys in (LABEL_KEYS, MASK_KEYS) for key, image in zip(keys, IMAGE_KEYS, strict=True)
}
_OF_ITS_GRID = (MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPATIAL_SHAPE, "sform_code", "qform_code")
_LABEL_ROUNDING = 1e-4

logger = logging.getLogger(__name__)


def load_pair(row: Mapping[str, Any], spatial_dims: int | None = None, min_size: int = 8) -> Pair:
    """Read and check what a row of a data list names, or holds.

    "fixed" and "moving" must be there; labels and landmarks come in pairs or not at all, masks one by one; see
    `data.keys`. Each is a path or an image in memory, see `as_image`; landmarks may be arrays (N, 3), RAS mm. A list of
    images of one side, in one space, makes an image whose channels they are, on the grid of the first. A mask
    counts where it is greater than 0. Plain arrays and tensors have no place of their own: a moving image lies on the
    grid of the fixed one, labels and masks on that of their image.

    Args:
        row: key -> path or image; "id" names the pair, other keys are not looked at.
        spatial_dims: 3 for volumes, 2 for slices; by default what the fixed image is.
        min_size: fewest voxels along an axis.

    Raises:
        PairError: when a file is missing, damaged, no image of real numbers, too small, constant or not finite or has a
            singular affine; labels are not whole numbers or masks exclude everything, or either is not on the grid of
            its image; or landmarks differ in number or lie outside their image.
    """
    given = {key: row[key] for key in PATH_KEYS if row.get(key) is not None}
    _check_keys(given)
    paths = {key: value for key, value in given.items() if _is_path(value)}
    for key, value in paths.items():  # all of them, before the first one is read
        for path in images_of(value):
            _check_existence(key, path)
    images: dict[str, MetaTensor] = {}
    for key in (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS):
        if key in given:
            first, *others = images_of(given[key]) if key in IMAGE_KEYS else [given[key]]
            image = as_image(first, key, spatial_dims, min_size, key in LABEL_KEYS)
            if key != "fixed" and _is_plain(first):
                image = _on_grid_of(images[_WHOSE_GRID[key]], _WHOSE_GRID[key], image, key)
            images[key] = _with_channels(key, image, others)
            spatial_dims = spatial_dims or image.ndim - 1
    stored_grid(images["fixed"], "fixed")  # results are written on it: better to know now whether they can be
    _check_channels(images)
    scans = []
    for side, image_key in enumerate(IMAGE_KEYS):
        image, label, mask = (images.get(keys[side]) for keys in (IMAGE_KEYS, LABEL_KEYS, MASK_KEYS))
        assert image is not None
        _check_contrast(image_key, image)
        for key, other in ((LABEL_KEYS[side], label), (MASK_KEYS[side], mask)):
            if other is not None:
                _check_grid_of_image(key, other, image)
        if label is not None:
            label = _whole_numbers(LABEL_KEYS[side], label)
        if mask is not None:
            mask = _ones_and_zeros(MASK_KEYS[side], mask)
        points = given.get(LANDMARK_KEYS[side])
        scans.append(Scan(image, label, mask, None if points is None else _points(LANDMARK_KEYS[side], points, image)))
    _check_landmarks(scans, given)
    sources = tuple((key, _absolute(value)) for key, value in paths.items())
    return Pair(scans[0], scans[1], str(row.get("id") or ""), sources, row.get(START_KEY))


def load_label(value: Image, key: str, image: MetaTensor) -> MetaTensor:
    """Read and check the label map of an image.

    Args:
        value: see `as_image`.
        key: what errors call it.
        image: (C, *spatial), on whose grid it has to be; a plain array or tensor is taken to be.

    Returns:
        (1, *spatial), whole numbers, float32.

    Raises:
        PairError: when it is no label map, or not on that grid.
    """
    label = as_image(value, key, image.ndim - 1, labels=True)
    if _is_plain(value):
        label = _on_grid_of(image, "its image", label, key)
    _check_channels({key: label})
    _check_grid_of_image(key, label, image)
    return _whole_numbers(key, label)


def _is_path(value: Any) -> bool:
    """Whether all that a key names are paths."""
    return all(isinstance(item, str | PathLike) for item in images_of(value))


def _absolute(value: Any) -> str | list[str]:
    found = [os.path.abspath(os.path.expanduser(path)) for path in images_of(value)]
    return found if isinstance(value, list | tuple) else found[0]


def _with_channels(key: str, image: MetaTensor, others: Sequence[Any]) -> MetaTensor:
    """The image with others of the same space as further channels, on its grid."""
    channels, kinds = [image], [image.meta["original_dtype"]]
    for other in others:
        found = as_image(other, key, image.ndim - 1)
        if _is_plain(other):
            found = _on_grid_of(image, key, found, key)
        _check_contrast(key, found)
        if not same_grid(image, found, voxel_map(image, found)):
            name, grid = source_name(key, found), source_name("the first image", image)
            found = on_grid_of(image, found)
            if float(found.min()) == float(found.max()):
                raise PairError(f"{name}: shows nothing on the grid of {grid}; give images of one space.")
            logger.info("%s: on another grid than %s, resampled to it.", name, grid)
        channels.append(found)
        kinds.append(found.meta["original_dtype"])
    if not others:
        return image
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    meta["original_dtype"] = np.result_type(*kinds).name
    return MetaTensor(torch.cat([x.as_tensor() for x in channels]), affine=image.affine.clone(), meta=meta)


def _is_plain(value: Any) -> bool:
    """Whether an image has no place of its own."""
    return isinstance(value, np.ndarray | Tensor) and not isinstance(value, MetaTensor)


def _on_grid_of(reference: MetaTensor, whose: str, image: MetaTensor, key: str) -> MetaTensor:
    if image.shape[1:] != reference.shape[1:]:
        raise PairError(
            f"{key}: a plain array or tensor of shape {tuple(image.shape[1:])} has no place of its own, and {whose} is "
            f"{tuple(reference.shape[1:])}; give one of that shape, or MetaTensors, whose affines say where voxels are."
        )
    image.affine = reference.affine.clone()
    image.meta.update({name: reference.meta[name] for name in _OF_ITS_GRID})
    return image


def _check_keys(given: Mapping[str, Any]) -> None:
    for key in IMAGE_KEYS:
        named = images_of(given.get(key, []))
        if not named or any(isinstance(x, str) and not x for x in named):
            raise PairError(f'{key}: no path was given; give one as "{key}".')
    for keys, what, both in (
        (LABEL_KEYS, "labels", "both label maps"),
        (LANDMARK_KEYS, "landmarks", "both lists of points"),
    ):
        there = [key for key in keys if key in given]
        if len(there) == 1:
            (missing,) = set(keys) - set(there)
            name = given[there[0]] if isinstance(given[there[0]], str | PathLike) else ""
            raise PairError(f"{there[0]} {name}: {what} came without {missing}; give {both}, or none to do without.")


def _check_existence(key: str, path: str | PathLike[str]) -> None:
    file = Path(expanduser(path))
    if not file.exists() and not ("#" in file.name and Path(fspath(file).rpartition("#")[0]).is_dir()):
        raise PairError(f"{key} {path}: there is no such file; check the path (relative paths start at {Path.cwd()}).")


def _check_channels(images: Mapping[str, MetaTensor]) -> None:
    for key in (*LABEL_KEYS, *MASK_KEYS):
        if key in images and len(images[key]) != 1:
            raise PairError(f"{source_name(key, images[key])}: {len(images[key])} channels, expected one.")
    counts = [len(images[key]) for key in IMAGE_KEYS if key in images]
    if len(set(counts)) > 1:
        names = [source_name(key, images[key]) for key in IMAGE_KEYS]
        raise PairError(
            f"{names[1]} has {counts[1]} channels and {names[0]} has {counts[0]}; give the same ones in the same order."
        )


def _check_contrast(key: str, image: MetaTensor) -> None:
    low = float(image.min())
    if low == float(image.max()):
        raise PairError(
            f"{source_name(key, image)}: every voxel is {low:g}, so there is nothing to register; give another image."
        )


def _check_grid_of_image(key: str, label: MetaTensor, image: MetaTensor) -> None:
    """Labels and masks belong to their image voxel by voxel: unlike a pair, they are never resampled to fit."""
    name, image_name = source_name(key, label), source_name("its image", image)
    advice = "resample it to the image's grid (nearest neighbour)."
    if label.shape[1:] != image.shape[1:]:
        raise PairError(
            f"{name}: shape {tuple(label.shape[1:])} differs from {tuple(image.shape[1:])} of {image_name}; {advice}"
        )
    shift = world_corners(label.affine, label.shape[1:]) - world_corners(image.affine, image.shape[1:])
    apart = float(torch.linalg.vector_norm(shift, dim=0).max())
    if apart > SAME_GRID_VOXELS * min(voxel_sides(image.affine, image.ndim - 1)):
        raise PairError(f"{name}: its affine puts a corner {apart:.3g} mm from that of {image_name}; {advice}")


def _whole_numbers(key: str, label: MetaTensor) -> MetaTensor:
    rounded = torch.round(label)
    fractions = int(((label - rounded).abs() > _LABEL_ROUNDING).sum())
    if fractions:
        raise PairError(
            f"{source_name(key, label)}: {fractions} voxels are no whole numbers; "
            "expected a label map; perhaps this is the image, or labels that were resampled linearly or whose header "
            "scales them (scl_slope)."
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


def _check_landmarks(scans: list[Scan], given: Mapping[str, Any]) -> None:
    """As many points of one image as of the other."""
    counts = [0 if scan.landmarks is None else len(scan.landmarks) for scan in scans]
    if counts[0] != counts[1]:
        names = [f"{key} {given[key]}" if isinstance(given[key], str | PathLike) else key for key in LANDMARK_KEYS]
        raise PairError(
            f"{names[1]} has {counts[1]} points and {names[0]} has {counts[0]}; give the same points in the same order."
        )


def _points(key: str, given: Any, image: MetaTensor) -> Tensor:
    """Points of a table or an array (N, 3), RAS mm, all of them within their image."""
    path = given if isinstance(given, str | PathLike) else "in memory"
    try:
        points = torch.from_numpy(read_points(given).ras) if path is given else torch.as_tensor(given).double()
    except FileNotFoundError as error:
        raise PairError(f"{key} {path}: there is no such file; check the path.") from error
    except (ValueError, OSError) as error:
        raise PairError(f"{key} {error}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not points.isfinite().all():
        raise PairError(f"{key} {path}: shape {tuple(points.shape)}, expected finite points (N, 3) in RAS mm.")
    voxels = to_voxels(points, image)
    size = torch.tensor(image.shape[1:])
    outside = ((voxels < -0.5) | (voxels > size - 0.5)).any(1).nonzero().flatten().tolist()
    if outside:
        first = outside[0]
        raise PairError(
            f"{key} {path}: {len(outside)} of {len(points)} points lie outside the image "
            f"{image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, '')}, the first is point {first + 1} at voxel "
            f"{[round(x, 1) for x in voxels[first].tolist()]} of {tuple(image.shape[1:])}; points are LPS mm as in ITK "
            "and ANTs, change the sign of x and y of RAS points."
        )
    stored = image.meta.get(MetaKeys.SPATIAL_SHAPE, image.shape[1:])
    warn_off_slice(f"{key} {path}", points.numpy(), affine_3d(image).numpy(), stored)
    return points
