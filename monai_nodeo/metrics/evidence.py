# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a pair of images says about its registration, whatever loss was optimised and whatever the contrasts are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.stats import entropy

__all__ = ["LIMIT_MM", "LIMIT_VOXELS", "Evidence", "foreground", "gather", "shared_information"]

LIMIT_MM, LIMIT_VOXELS = 5.0, 3.0  # farther off than either is wrong
_VOXELS = 300_000  # enough for a histogram of two images
_BINS = 32
_BRIGHTEST = 0.995
_POINTS = {2: 64, 3: 40}  # along the fixed foreground: what is compared within windows
_WINDOW = 1.5  # standard deviation of those windows, in points
_NOISE = 0.05  # what is taken for noise, as a share of an image's standard deviation
_APART = 3  # times the limit
_DIRECTIONS = ("left-right", "back-front", "bottom-top")


class Evidence(NamedTuple):
    """Figures of images and displacement that a verdict rests on.

    Attributes:
        shared_before: information that the fixed and the moving image share, see :py:func:`shared_information`.
        shared_after: the same of the fixed and the warped image.
        aside: share of what the warped and the fixed image tell about each other within small windows that is told only
            when one is moved along an axis, by 15 mm or 9 voxels, whichever is less. It is told, in nats, by
            ``-log(1 - r^2) / 2`` of the correlation r, as if they were jointly normal.
        moved: mean length of the displacement over the fixed foreground, in limits (5 mm or 3 voxels).
        bent: the same of what no affine map explains of it, as a share of the foreground's side.
        shared_turned: the most that a moving image turned over before registration shares with the fixed one.
        turned_along: directions that this one is turned over along.
        identical: whether fixed and moving image hold the same voxels.
        grey_values: of the fixed and the moving image: different values (counted up to 100).
        largest_mm: 99.9 % quantile of the displacement's length.
        extent_mm: diagonal of the fixed grid.
    """

    shared_before: float
    shared_after: float
    aside: float
    moved: float
    bent: float
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
        masks: the same names, or some of them -> where the image counts and its view reaches, (*spatial), bool.
    """
    dims = len(ddf)
    everywhere = np.ones(images["fixed"].shape, dtype=bool)
    fixed, moving, warped = (
        # what the warped image has beyond the moving one is no air of its own
        _look(_thinned(images[name]), _thinned((masks or {}).get(name, everywhere)), _air(images[source]))
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
    foreground = fixed.foreground & fixed.counts
    points = _Points(images, masks or {}, _side(foreground, spacing * _step(images["fixed"])), spacing)
    moved, bent = points.displaced(ddf)
    length = np.linalg.norm([_thinned(c) * s for c, s in zip(ddf, spacing, strict=True)], axis=0)
    return Evidence(
        shared_before=_shared(fixed, moving),
        shared_after=_shared(fixed, warped),
        aside=points.aside(),
        moved=moved,
        bent=bent,
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
    return _shared(*(_look(image, np.ones(image.shape, dtype=bool), _air(image)) for image in (one, other)))


def foreground(image: NDArray) -> NDArray:
    """What does not look like the air at the border of an image, (*spatial), bool."""
    return _look(image, np.ones(image.shape, dtype=bool), _air(image)).foreground


class _Look(NamedTuple):
    """An image, where it counts, and what does not look like air, (*spatial) each."""

    image: NDArray
    counts: NDArray
    foreground: NDArray

    def turned(self, axes: Iterable[int]) -> _Look:
        axes = tuple(axes)
        return _Look(*(np.flip(values, axes) for values in self))


def _look(image: NDArray, counts: NDArray, air: float) -> _Look:
    """Air is what is near a grey value, be that dark or bright."""
    unlike = sitk.OtsuThreshold(sitk.GetImageFromArray(np.abs(image - air)), 0, 1)
    return _Look(image, counts, sitk.GetArrayFromImage(unlike).astype(bool))


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


class _Points:
    """The fixed and the warped image as some points see them, each the mean of a block of voxels.

    Args:
        images: "fixed" and "warped", (*spatial).
        masks: the same names, or some of them -> where the image counts, (*spatial), bool.
        side: mean side of the fixed foreground, mm.
        spacing: voxel size, mm.
    """

    def __init__(
        self, images: Mapping[str, NDArray], masks: Mapping[str, NDArray], side: float, spacing: NDArray
    ) -> None:
        fixed = images["fixed"]
        self.side, self.spacing = side, spacing
        wanted = side / _POINTS[fixed.ndim]
        self.blocks = [max(1, min(round(wanted / s), n // 2)) for s, n in zip(spacing, fixed.shape, strict=True)]
        pooled = _pooled(fixed, self.blocks)
        foreground = _look(pooled, np.ones(pooled.shape, dtype=bool), _air(fixed)).foreground
        self.values, self.weight = {}, {}
        for name in ("fixed", "warped"):
            counts = masks.get(name)
            weight = np.ones(pooled.shape) if counts is None else _pooled(counts, self.blocks)
            image = images[name] if counts is None else images[name] * counts
            values = _pooled(image, self.blocks) / np.maximum(weight, 1e-6)
            seen = values[foreground & (weight > 0.5)]
            centre, scale = (seen.mean(), max(seen.std(), 1e-9)) if seen.size else (0.0, 1.0)
            self.values[name], self.weight[name] = (values - centre) / scale, weight
        before = _pooled(masks["moving"], self.blocks) if "moving" in masks else np.ones(pooled.shape)
        everywhere = np.minimum.reduce([before, *self.weight.values()]) > 0.5
        seen = binary_dilation(foreground, iterations=2) & everywhere
        self.counted = seen if seen.any() else np.ones(seen.shape, bool)

    def information(self, steps: int = 0, axis: int = 0) -> NDArray:
        """What both images, the warped one moved by some points, tell about each other at each point, (N,)."""
        one, other = self.values["fixed"], np.roll(self.values["warped"], steps, axis)
        weight = self.weight["fixed"] * np.roll(self.weight["warped"], steps, axis)
        smooth = partial(gaussian_filter, sigma=_WINDOW, mode="constant", truncate=3)
        total = np.maximum(smooth(weight), 1e-3)
        products = (one, other, one * one, other * other, one * other)
        f, m, ff, mm, fm = (smooth(weight * x) / total for x in products)
        variances = [np.maximum(x, 0) + _NOISE**2 for x in (ff - f * f, mm - m * m)]
        rest = 1 - (fm - f * m) ** 2 / (variances[0] * variances[1])
        return -0.5 * np.log(np.maximum(rest, 1e-4))[self.counted]

    def aside(self) -> float:
        """Share of the information that is there only after some shift along an axis."""
        limits = np.minimum(LIMIT_MM / self.spacing, LIMIT_VOXELS)
        steps = [max(1, round(_APART * n / b)) for n, b in zip(limits, self.blocks, strict=True)]
        here = self.information()
        shifts = product((-1, 1), enumerate(steps))
        best = np.max([here, *(self.information(sign * step, axis) for sign, (axis, step) in shifts)], axis=0)
        return float((best - here).sum() / max(best.sum(), 1e-9))

    def displaced(self, ddf: NDArray) -> tuple[float, float]:
        """How far a displacement, (D, *spatial) in voxels, moves points, in limits, and how far it bends, in sides."""
        voxels = np.stack([_pooled(c, self.blocks)[self.counted] for c in ddf], 1)
        places = np.argwhere(self.counted) * self.blocks
        affine = np.c_[places, np.ones(len(places))]
        bent = voxels - affine @ np.linalg.lstsq(affine, voxels, rcond=None)[0]
        limit = 1 / np.minimum(LIMIT_MM / self.spacing, LIMIT_VOXELS)
        moved, bent = (np.linalg.norm(x, axis=1).mean() for x in (voxels * limit, bent * self.spacing))
        return float(moved), float(bent) / self.side


def _pooled(image: NDArray, blocks: Sequence[int]) -> NDArray:
    """Means of blocks of voxels; what is left at the ends is left out."""
    counts = [n // b for n, b in zip(image.shape, blocks, strict=True)]
    whole = image[tuple(slice(0, n * b) for n, b in zip(counts, blocks, strict=True))]
    split = whole.reshape([x for pair in zip(counts, blocks, strict=True) for x in pair])
    return split.mean(tuple(range(1, 2 * image.ndim, 2)), dtype=np.float32)


def _side(foreground: NDArray, spacing: NDArray) -> float:
    """Mean side of the box around what is True, mm."""
    places = foreground.nonzero()
    sides = [np.ptp(x) + 1 if x.size else n for x, n in zip(places, foreground.shape, strict=True)]
    return float((np.array(sides) * spacing).prod() ** (1 / foreground.ndim))


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
