# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms applied to files: images, label maps, series and points. By SimpleITK, without torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files import (
    Affine,
    Displacement,
    ImageGrid,
    StoredImage,
    Transform,
    background,
    itk_geometry,
    open_stored,
    read_points,
    read_transform,
    write_points,
    write_warped,
)
from monai_nodeo.files.afni import check_straight_images
from monai_nodeo.files.reorientation import check_reorientable, reoriented

__all__ = [
    "INTERPOLATIONS",
    "apply_to_image",
    "apply_to_points",
    "check_place",
    "map_on_fields",
    "read_chain",
    "resample",
]

INTERPOLATIONS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "label": sitk.sitkLabelLinear}

_INVERTED = re.compile(r"\[(?P<path>.+),\s*(?P<invert>[01])\s*\]")
_OF_ITK = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32)]
_OF_ITK += [np.dtype(np.float32), np.dtype(np.float64)]
_EXACT = 2**53  # whole numbers up to it are doubles
_LATTICE = 9  # points along an axis of the reference at which a transform is tried out
_SMALL_SHARE = 0.5

logger = logging.getLogger(__name__)


def read_chain(names: Sequence[str], images: tuple[str, str] | None = None) -> Transform:
    """Read transforms to use one after the other, written and ordered as for ``antsApplyTransforms``.

    The last one is applied to the image first; a point of the fixed image goes through the first one first.

    Args:
        names: files; ``[file,1]`` is the inverse of an affine.
        images: files of the image whose grid is sampled and of the one that is warped, if there are any.

    Raises:
        ValueError: when an inverse of a field is asked for, 2D and 3D are mixed, or one of AFNI's does not say what it
            does to oblique images.
    """
    transforms = [_read_one(name) for name in names]
    if images:
        places = [open_stored(image).affine for image in images]
        for name in names:
            inverted = _INVERTED.fullmatch(name)
            check_straight_images(inverted["path"] if inverted else name, *places)
    worlds = {name: transform.world_dims for name, transform in zip(names, transforms, strict=True)}
    if len(set(worlds.values())) > 1:
        found = ", ".join(f"{name} is {dims}D" for name, dims in worlds.items())
        raise ValueError(f"{found}; give transforms of one dimension.")
    return Transform(tuple(step for transform in transforms for step in transform.steps))


def apply_to_image(
    image: str,
    reference: str,
    transform: Transform,
    output: str,
    interpolation: str = "linear",
    outside: float | None = None,
    reorient: str | None = None,
) -> None:
    """Bring an image on to the grid of a reference and write it, with its own type of values.

    Args:
        image: file of the moving image; the volumes of a series and the channels of an image are warped one by one.
        reference: file whose grid the result gets, such as the fixed image or the moving image itself.
        transform: points of the reference's space -> points of the image's space.
        output: target, a name of `files.image_targets`.
        interpolation: a key of `INTERPOLATIONS`; "label" takes the label with the largest linear weight.
        outside: value where the image is not known; None: the `background` of each channel, 0 with labels and nearest
            neighbours.
        reorient: turn vectors and tensors, whose components are along the axes of this frame, "lps" or "ras".

    Raises:
        ValueError: when the transform and the two images do not belong together, or there is nothing to turn.
    """
    stored, target = open_stored(image), open_stored(reference)
    grid = _grid(target, transform.world_dims)
    check_place(transform, grid, stored)
    if reorient:
        check_reorientable(image, stored.shape, grid)
        outside = 0.0 if outside is None else outside
    values = resample(stored, grid, transform, interpolation, outside)
    if reorient:
        values = reoriented(values, grid, transform, reorient)
    tensors = reorient and stored.channels == 6
    write_warped(output, values, grid, stored, reference, "symmetric matrix" if tensors else "vector")


def resample(
    stored: StoredImage,
    grid: ImageGrid,
    transform: Transform,
    interpolation: str = "linear",
    outside: float | None = None,
) -> np.ndarray:
    """An image on a grid.

    Args:
        stored: the moving image, (X, Y, Z) or (X, Y), or with more axes after three.
        grid: where to sample it.
        transform: points of the grid's space -> points of the image's space.
        interpolation: a key of `INTERPOLATIONS`.
        outside: value where the image is not known; None: the `background` of each channel, 0 with labels and nearest
            neighbours.

    Returns:
        (*grid.shape, *further axes), of the type of the stored values; bool and half precision, which NIfTI lacks,
        as uint8 and float32.

    Raises:
        ValueError: when the transform, the image and the grid differ in dimension, labels are fractions, integers are
            too large to be interpolated, or the image's type does not hold the value outside.
    """
    source = _grid(stored, transform.world_dims)
    kind = _kind(stored.dtype)
    _check_outside(stored.path, kind, outside)
    values = stored.load().astype(kind, copy=False)
    labels = None
    if interpolation == "label" and kind.kind == "f":
        _check_whole(stored.path, values)
    if interpolation != "linear" and (kind not in _OF_ITK or (interpolation == "label" and kind.kind == "f")):
        # by their numbers in a list: ITK has no such integers, and takes every fraction for a label, for hours
        labels, numbers = np.unique(np.append(values, kind.type(outside or 0)), return_inverse=True)
        values, outside = numbers[:-1].astype(np.int32), int(numbers[-1])
    elif interpolation == "linear":
        values = _as_reals(stored.path, values)
    volumes = values.reshape(*source.shape, -1)
    images = [_as_itk(volumes[..., i], source) for i in range(volumes.shape[-1])]
    itk: sitk.Transform = transform.to_itk()
    if len(images) > 1:  # the same for every volume, and exact at the voxels of the grid
        itk = sitk.DisplacementFieldTransform(
            sitk.TransformToDisplacementField(itk, sitk.sitkVectorFloat64, grid.shape, *itk_geometry(grid).values())
        )
    mode = INTERPOLATIONS[interpolation]
    fills = [outside] * len(images)
    if outside is None:
        fills = [background(volumes[..., i]) if interpolation == "linear" else 0.0 for i in range(len(images))]
    warped = [
        sitk.Resample(one, grid.shape, itk, mode, *itk_geometry(grid).values(), fill, one.GetPixelID())
        for one, fill in zip(images, fills, strict=True)
    ]
    stack = np.stack([sitk.GetArrayViewFromImage(one).T for one in warped], axis=-1)
    stack = stack.reshape(*grid.shape, *stored.shape[3:])
    if labels is not None:
        return labels[stack]
    return (np.rint(stack) if kind.kind in "iu" else stack).astype(kind, copy=False)


def check_place(transform: Transform, grid: ImageGrid, stored: StoredImage) -> None:
    """Refuse a transform whose field, or whose result, misses what it is to be applied to; tried out at some points.

    Args:
        transform: points of the grid's space -> points of the image's space.
        grid: where the image is to be sampled.
        stored: the moving image.

    Raises:
        ValueError: says what misses what.
    """
    axes = [np.linspace(0, n - 1, min(n, _LATTICE)) for n in grid.spatial_shape]
    index = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, grid.spatial_dims)
    points = index @ grid.affine[:3, : grid.spatial_dims].T + grid.affine[:3, 3]
    there = map_on_fields(transform, points, "the reference", _SMALL_SHARE)
    if _grid(stored, transform.world_dims).share_inside(there) == 0:
        raise ValueError(
            f"{stored.path}: the transform takes no point of the reference into this image; it belongs to another "
            "image, or its inverse is needed."
        )


def apply_to_points(points: str, transform: Transform, output: str) -> None:
    """Take points of the fixed image, a file of `files.points`, to the moving image.

    The opposite way of an image's: the transform that brings the moving image on to the fixed grid takes points of the
    fixed image to the moving one. Points of the moving image need the inverse.

    Raises:
        ValueError: when the file is bad, or every point lies outside the field.
    """
    table = read_points(points)
    write_points(output, table.moved_to(map_on_fields(transform, table.ras, points, enough=1)))


def map_on_fields(transform: Transform, points: np.ndarray, name: str, enough: float) -> np.ndarray:
    """Where points of the fixed image arrive, with a warning where too few of them lie on a field that they come to.

    Args:
        transform: points of the fixed image -> points of the moving image.
        points: (N, 3), RAS mm.
        name: of the points, for messages.
        enough: share of them from which on nothing is said.

    Returns:
        (N, 3), RAS mm.

    Raises:
        ValueError: when none of them lies on a field.
    """
    *places, there = transform.path(points)
    for step, place in zip(transform.steps, places, strict=True):
        share = step.grid.share_inside(place) if isinstance(step, Displacement) else 1.0
        if share == 0:
            raise ValueError(
                f"{name} lies outside the grid of the displacement field, where nothing is known; the transform "
                "belongs to another image, or its inverse is needed."
            )
        if share < enough:
            logger.warning(
                "warning: only %.0f %% of %s lie on the grid of the displacement field; the rest is not displaced.",
                100 * share,
                name,
            )
    return there


def _read_one(name: str) -> Transform:
    inverted = _INVERTED.fullmatch(name)
    if not inverted:
        return read_transform(name)
    transform = read_transform(inverted["path"])
    if inverted["invert"] == "0":
        return transform
    steps = [step.inverse() for step in reversed(transform.steps) if isinstance(step, Affine)]
    if len(steps) < len(transform.steps):
        raise ValueError(
            f"{name}: only affines are inverted on the fly and {inverted['path']} holds a displacement field; "
            "make its inverse first, with monai-nodeo invert."
        )
    return Transform(tuple(steps))


def _grid(stored: StoredImage, world_dims: int) -> ImageGrid:
    """The grid of an image's first axes in the world of a transform."""
    thick = stored.shape[2:3] not in ((), (1,))
    if len(stored.shape) < world_dims or (world_dims == 2 and thick):
        raise ValueError(
            f"{stored.path}: an image of shape {stored.shape} and a transform of {world_dims}D points do not belong "
            "together; give the transform that was made for this image."
        )
    try:
        return ImageGrid(stored.affine, stored.shape[:world_dims], stored.sform_code, stored.qform_code)
    except ValueError as error:
        raise ValueError(f"{stored.path}: {error}") from error


def _kind(stored: np.dtype) -> np.dtype:
    """The type of a result: that of the image, or the next one that NIfTI holds."""
    native = stored.newbyteorder("=")
    return np.dtype({"bool": "uint8", "float16": "float32"}.get(native.name, native))


def _check_outside(name: str, kind: np.dtype, outside: float | None) -> None:
    """A value that the image's type does not hold would come out as another one."""
    if outside is None:
        return
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        held, holds = limits.min <= outside <= limits.max and outside % 1 == 0, f"from {limits.min} to {limits.max}"
    else:
        held, holds = not float(np.finfo(kind).max) < abs(outside) < np.inf, f"up to {np.finfo(kind).max:.3g}"
    if not held:
        raise ValueError(f"{name}: the value outside is {outside:g}, and its voxels are {kind}, {holds}; give another.")


def _check_whole(name: str, values: np.ndarray) -> None:
    if not np.array_equal(values, np.rint(values)):
        raise ValueError(f"{name}: the values are no whole numbers, expected labels; use -n linear for an image.")


def _as_reals(name: str, values: np.ndarray) -> np.ndarray:
    """Values to interpolate; ITK cuts the fractions of whole numbers off, and 254.999 becomes 254."""
    reals = values.astype(np.float64 if values.dtype.itemsize > 8 else np.result_type(values, np.float32), copy=False)
    if values.dtype.kind in "iu" and values.dtype.itemsize > 4 and values.size and np.abs(reals).max() > _EXACT:
        raise ValueError(
            f"{name}: values of {values.dtype} up to {np.abs(reals).max():.0f} cannot be interpolated exactly; "
            "use -n nearest or -n label for labels."
        )
    return reals


def _as_itk(values: np.ndarray, grid: ImageGrid) -> sitk.Image:
    image = sitk.GetImageFromArray(values.T)
    for name, value in itk_geometry(grid).items():
        getattr(image, f"Set{name}")(value)
    return image
