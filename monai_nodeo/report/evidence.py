# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a pair of images says about its registration, whatever loss was optimised and whatever the contrasts are."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.stats import entropy

__all__ = ["Evidence", "gather", "shared_information"]

_VOXELS = 300_000  # enough for a histogram of two images
_BINS = 32
_BRIGHTEST = 0.995
_DIRECTIONS = ("left-right", "back-front", "bottom-top")


class Evidence(NamedTuple):
    """Figures of images and displacement that a verdict rests on.

    Attributes:
        shared_before: information that the fixed and the moving image share, see :py:func:`shared_information`.
        shared_after: the same of the fixed and the warped image.
        shared_by_chance: the same of the fixed and the warped image turned over along every axis.
        shared_turned: the most that a moving image turned over before registration shares with the fixed one.
        turned_along: directions that this one is turned over along.
        identical: whether fixed and moving image hold the same voxels.
        grey_values: of the fixed and the moving image: different values (counted up to 100).
        largest_mm: 99.9 % quantile of the displacement's length.
        extent_mm: diagonal of the fixed grid.
    """

    shared_before: float
    shared_after: float
    shared_by_chance: float
    shared_turned: float
    turned_along: tuple[str, ...]
    identical: bool
    grey_values: tuple[int, int]
    largest_mm: float
    extent_mm: float


def gather(images: dict[str, NDArray], ddf: NDArray, affine: NDArray) -> Evidence:
    """Look at a registered pair.

    Args:
        images: "fixed", "moving" and "warped" on the fixed grid, (*spatial).
        ddf: displacement in voxels, (D, *spatial), tensor axis order.
        affine: voxel -> RAS mm, (4, 4).
    """
    dims = len(ddf)
    fixed, moving, warped = (_thinned(images[name]) for name in ("fixed", "moving", "warped"))
    turned = {
        axes: shared_information(fixed, np.flip(moving, axes))
        for count in range(1, dims + 1)
        for axes in combinations(range(dims), count)
    }
    best = max(turned, key=lambda axes: turned[axes])
    world = io_orientation(affine)[:, 0]
    spacing = np.linalg.norm(affine[:3, :dims], axis=0)
    length = np.linalg.norm([_thinned(c) * s for c, s in zip(ddf, spacing, strict=True)], axis=0)
    return Evidence(
        shared_before=shared_information(fixed, moving),
        shared_after=shared_information(fixed, warped),
        shared_by_chance=shared_information(fixed, np.flip(warped)),
        shared_turned=turned[best],
        turned_along=tuple(_DIRECTIONS[int(world[axis])] for axis in best),
        identical=np.array_equal(images["fixed"], images["moving"]),
        grey_values=(_grey_values(fixed), _grey_values(moving)),
        largest_mm=float(np.quantile(length, 0.999)),
        extent_mm=float(np.linalg.norm(np.array(ddf.shape[1:]) * spacing)),
    )


def shared_information(one: NDArray, other: NDArray) -> float:
    """Share of the joint entropy of two images that each tells about the other, within their foregrounds.

    Mutual information over joint entropy: 1 for images that determine each other, 0 for independent ones, whatever
    the contrasts. 32 grey values each.

    Args:
        one: an image, (*spatial).
        other: on the same grid.
    """
    bounds = [_limits(image) for image in (one, other)]
    if any(low == high for low, high in bounds):
        return 0.0
    inside = binary_dilation(_foreground(one) | _foreground(other), iterations=2)
    joint, _, _ = np.histogram2d(one[inside].clip(*bounds[0]), other[inside].clip(*bounds[1]), bins=_BINS)
    joint_entropy = entropy(joint.ravel())
    if joint_entropy == 0:
        return 0.0
    return float((entropy(joint.sum(0)) + entropy(joint.sum(1)) - joint_entropy) / joint_entropy)


def _thinned(image: NDArray) -> NDArray:
    """Every n-th voxel along each axis."""
    step = int(np.ceil((image.size / _VOXELS) ** (1 / image.ndim)))
    return np.ascontiguousarray(image[(slice(None, None, step),) * image.ndim])


def _limits(image: NDArray) -> tuple[float, float]:
    return float(image.min()), float(np.quantile(image, _BRIGHTEST))


def _foreground(image: NDArray) -> NDArray:
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1)).astype(bool)


def _grey_values(image: NDArray) -> int:
    return min(100, len(np.unique(image)))
