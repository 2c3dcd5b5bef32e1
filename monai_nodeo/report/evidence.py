# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a pair of images says about its registration, whatever loss was optimised and whatever the contrasts are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        distortion: how far neighbouring points of the fixed foreground are moved apart, in their distance: root mean
            square of the displacement's gradient.
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
    distortion: float
    shared_turned: float
    turned_along: tuple[str, ...]
    identical: bool
    grey_values: tuple[int, int]
    largest_mm: float
    extent_mm: float


def gather(
    images: Mapping[str, NDArray], ddf: NDArray, affine: NDArray, masks: Mapping[str, NDArray] | None = None
) -> Evidence:
    """Look at a registered pair.

    Args:
        images: "fixed", "moving" and "warped" on the fixed grid, (*spatial).
        ddf: displacement in voxels, (D, *spatial), tensor axis order.
        affine: voxel -> RAS mm, (4, 4).
        masks: the same names, or some of them -> where the image counts, (*spatial), bool.
    """
    dims = len(ddf)
    everywhere = np.ones(images["fixed"].shape, dtype=bool)
    fixed, moving, warped = (
        # what the warped image has beyond the moving one is no air of its own
        _Look(_thinned(images[name]), _thinned((masks or {}).get(name, everywhere)), _air(images[source]))
        for name, source in (("fixed", "fixed"), ("moving", "moving"), ("warped", "moving"))
    )
    turned = {
        axes: _shared(fixed, moving.turned(axes))
        for count in range(1, dims + 1)
        for axes in combinations(range(dims), count)
    }
    best = max(turned, key=lambda axes: turned[axes])
    world = io_orientation(affine)[:, 0]
    spacing = np.linalg.norm(affine[:3, :dims], axis=0)
    length = np.linalg.norm([_thinned(c) * s for c, s in zip(ddf, spacing, strict=True)], axis=0)
    return Evidence(
        shared_before=_shared(fixed, moving),
        shared_after=_shared(fixed, warped),
        shared_by_chance=_by_chance(fixed, warped),
        distortion=_distortion(ddf, spacing, fixed.foreground & fixed.counts & warped.counts),
        shared_turned=turned[best],
        turned_along=tuple(_DIRECTIONS[int(world[axis])] for axis in best),
        identical=np.array_equal(images["fixed"], images["moving"]),
        grey_values=(_grey_values(fixed.image), _grey_values(moving.image)),
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
    return _shared(*(_Look(image, np.ones(image.shape, dtype=bool), _air(image)) for image in (one, other)))


class _Look(NamedTuple):
    """An image, where it counts, (*spatial) each, and the grey value of what is around things."""

    image: NDArray
    counts: NDArray
    air: float

    def turned(self, axes: Iterable[int]) -> _Look:
        axes = tuple(axes)
        return self._replace(image=np.flip(self.image, axes), counts=np.flip(self.counts, axes))

    def within(self, box: tuple[slice, ...]) -> _Look:
        return self._replace(image=self.image[box], counts=self.counts[box])

    @property
    def foreground(self) -> NDArray:
        """What does not look like air, be that dark or bright."""
        unlike = sitk.GetImageFromArray(np.abs(self.image - self.air))
        return sitk.GetArrayFromImage(sitk.OtsuThreshold(unlike, 0, 1)).astype(bool)


def _shared(one: _Look, other: _Look) -> float:
    inside = one.counts & other.counts
    inside &= binary_dilation(one.foreground | other.foreground, iterations=2)
    if not inside.any():
        return 0.0
    values = [look.image[inside] for look in (one, other)]
    bounds = [_limits(look.image[look.counts]) for look in (one, other)]
    if any(low == high for low, high in bounds):
        return 0.0
    first, second = (v.clip(*limits) for v, limits in zip(values, bounds, strict=True))
    joint, _, _ = np.histogram2d(first, second, bins=_BINS)
    joint_entropy = entropy(joint.ravel())
    if joint_entropy == 0:
        return 0.0
    return float((entropy(joint.sum(0)) + entropy(joint.sum(1)) - joint_entropy) / joint_entropy)


def _by_chance(fixed: _Look, warped: _Look) -> float:
    """What they share after one was turned over within the box of voxels that both count."""
    both = fixed.counts & warped.counts
    box = tuple(slice(places.min(), places.max() + 1) for places in both.nonzero()) if both.any() else ()
    return _shared(fixed.within(box), warped.within(box).turned(range(both.ndim)))


def _distortion(ddf: NDArray, spacing: NDArray, foreground: NDArray) -> float:
    """Central differences of neighbouring voxels at the voxels of a thinned foreground, see :py:class:`Evidence`."""
    if not foreground.any():
        return 0.0
    step = _step(ddf[0])
    squares = np.zeros(foreground.shape)
    for axis, size in enumerate(ddf.shape[1:]):
        middle = np.arange(0, size, step)
        ahead, behind = np.minimum(middle + 1, size - 1), np.maximum(middle - 1, 0)
        thin = tuple(slice(None) if other == axis else slice(None, None, step) for other in range(len(ddf)))
        rows = (ahead - behind).reshape([-1 if other == axis else 1 for other in range(len(ddf))]) * spacing[axis]
        for component, side in zip(ddf, spacing, strict=True):
            along = component[thin]
            squares += ((along.take(ahead, axis) - along.take(behind, axis)) * (side / rows)) ** 2
    return float(np.sqrt(squares[foreground].mean()))


def _thinned(image: NDArray) -> NDArray:
    """Every n-th voxel along each axis."""
    return np.ascontiguousarray(image[(slice(None, None, _step(image)),) * image.ndim])


def _step(image: NDArray) -> int:
    return int(np.ceil((image.size / _VOXELS) ** (1 / image.ndim)))


def _limits(image: NDArray) -> tuple[float, float]:
    return float(image.min()), float(np.quantile(image, _BRIGHTEST))


def _air(image: NDArray) -> float:
    """The middle one of the grey values at the border."""
    border = np.ones(image.shape, dtype=bool)
    border[(slice(1, -1),) * image.ndim] = False
    return float(np.median(image[border]))


def _grey_values(image: NDArray) -> int:
    return min(100, len(np.unique(image)))
