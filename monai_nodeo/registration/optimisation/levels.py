# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Coarse to fine: the grids of the images and of the cloud at each level, in millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.geometry.coordinates import rescale_points
from monai_nodeo.geometry.cropping import Box, cropped
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.geometry.sampling import weighted_mean

__all__ = ["Level", "PairBatch", "coarser_first", "make_levels"]

_FEWEST = 8  # voxels along an axis that a level keeps


@dataclass(frozen=True)
class Level:
    """Grids of one level. All grids of a pair have the same extent: first voxel centres coincide, and last ones.

    Attributes:
        image_size: of the images, D entries.
        spacing: voxel size of the images in mm.
        cloud_size: of the nodes of the velocity, which are the cloud of points that is integrated.
        cloud_spacing: distance of the nodes in mm.
        coarseness: side of the level's voxels, in smallest voxel sides of the pair.
        index: of the level, 0 is the coarsest.
        count: of all levels.
        dense: the images are sampled where the finished flow takes the voxels.
    """

    image_size: tuple[int, ...]
    spacing: tuple[float, ...]
    cloud_size: tuple[int, ...]
    cloud_spacing: tuple[float, ...]
    coarseness: float = 1.0
    index: int = 0
    count: int = 1
    dense: bool = False


def make_levels(
    image_size: Sequence[int],
    spacing: Sequence[float],
    shrink_factors: Sequence[float] = (1,),
    point_spacing: float = 1,
    dense: bool = False,
) -> list[Level]:
    """The levels of a pair.

    A level has voxels of a side of its shrink factor times the smallest voxel side, along every axis whose voxels are
    not already longer: 1 x 1 x 5 mm shrunk by 4 becomes 4 x 4 x 5 mm.

    Args:
        image_size: shape of the fixed image, D entries.
        spacing: its voxel size in mm.
        shrink_factors: one a level, coarse to fine, at least 1, as in ANTs.
        point_spacing: smallest distance of the cloud's points, in smallest voxel sides.
        dense: with one more level of the same grids, at which every voxel follows the flow, where that makes a
            difference.

    Raises:
        ValueError: when a factor or the spacing of the points is below 1, or the factors grow.
    """
    factors = tuple(shrink_factors)
    if not factors or min(*factors, point_spacing) < 1 or list(factors) != sorted(factors, reverse=True):
        raise ValueError(
            f"expected shrink factors from coarse to fine and a spacing of points of at least 1, "
            f"got {list(factors)} and {point_spacing}."
        )
    shortest = min(spacing)
    levels = []
    for index, factor in enumerate(factors):
        image = _grid(image_size, spacing, factor * shortest)
        cloud = _grid(image_size, spacing, max(factor, point_spacing) * shortest)
        levels.append(Level(*image, *cloud, float(factor), index))
    if dense and levels[-1].cloud_size != levels[-1].image_size:
        levels.append(replace(levels[-1], index=len(levels), dense=True))
    return [replace(level, count=len(levels)) for level in levels]


def coarser_first(
    image_size: Sequence[int], spacing: Sequence[float], shrink_factors: Sequence[float], coarsest: int
) -> list[float]:
    """Shrink factors, and before them as many doubled ones as a large image needs.

    A window that is compared has to reach as far in a large image as in a small one.

    Args:
        image_size: D entries.
        spacing: voxel size in mm.
        shrink_factors: coarse to fine.
        coarsest: voxels that the first level may have along its longest axis.
    """
    factors = list(shrink_factors)
    while max(_grid(image_size, spacing, factors[0] * min(spacing))[0]) > coarsest:
        factors.insert(0, 2 * factors[0])
    return factors


def _grid(size: Sequence[int], spacing: Sequence[float], side: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and voxel size of a grid over the same extent whose voxels have about the given side, or are longer."""
    new = [
        n if s >= side else max(min(n, _FEWEST), 2 * round(((n - 1) * s / side + 1) / 2))
        for n, s in zip(size, spacing, strict=True)
    ]
    sides = [s * (n - 1) / (m - 1) if m > 1 else s for n, s, m in zip(size, spacing, new, strict=True)]
    return tuple(new), tuple(sides)


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs of images of one shape, each on one grid, with what else is known about them: what a level works on.

    Attributes:
        fixed: (B, C, *spatial).
        moving: same shape.
        fixed_mask: how much each voxel of the fixed image counts, (B, 1, *spatial), None: all the same.
        moving_mask: the same of the moving image.
        fixed_certainty: how sure the fixed image is, as a further weight, (B, 1, *spatial); a similarity that cannot
            take weights does without.
        landmarks: (B, N, 2, D), see :py:mod:`monai_nodeo.losses.landmarks`.
        labels: of the fixed and the moving image, (B, 2, *spatial), numbered as in
            :py:func:`monai_nodeo.losses.label_shares`; on the grid of the pairs at every level.
        times: of a series, in [0, 1]: that of the one fixed image, then that of each moving one; all are of one flow.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_certainty: Tensor | None = None
    landmarks: Tensor | None = None
    labels: Tensor | None = None
    times: tuple[float, ...] | None = None

    @classmethod
    def of(cls, pairs: Sequence[PairBatch]) -> PairBatch:
        """Several batches as one; they have the same shapes, and masks and landmarks or none."""
        if len(pairs) == 1:
            return pairs[0]
        parts = {field.name: [getattr(pair, field.name) for pair in pairs] for field in fields(cls)}
        joined: dict[str, Any] = {name: None if items[0] is None else torch.cat(items) for name, items in parts.items()}
        return cls(**joined)

    @property
    def cycle(self) -> int:
        """Iterations in which all images are seen."""
        return 1

    def both_ways(self) -> PairBatch:
        """The pairs, and behind them the same with their images exchanged."""
        masks = [self.fixed_mask, self.moving_mask]
        if any(mask is not None for mask in masks):
            masks = [torch.ones_like(self.fixed[:, :1]) if mask is None else mask for mask in masks]
        landmarks = None if self.landmarks is None else self.landmarks.flip(2)
        labels = None if self.labels is None else self.labels.flip(1)
        there = replace(self, fixed_mask=masks[0], moving_mask=masks[1], fixed_certainty=None)
        back = PairBatch(self.moving, self.fixed, masks[1], masks[0], None, landmarks, labels)
        return PairBatch.of([there, back])

    def cropped(self, box: Box) -> PairBatch:
        """The pairs in a box of voxels."""
        landmarks = self.landmarks
        if landmarks is not None:
            landmarks = landmarks - landmarks.new_tensor([part.start or 0 for part in box])
        fixed_mask, moving_mask, certainty, labels = (
            None if x is None else cropped(x, box)
            for x in (self.fixed_mask, self.moving_mask, self.fixed_certainty, self.labels)
        )
        return PairBatch(
            cropped(self.fixed, box), cropped(self.moving, box), fixed_mask, moving_mask, certainty, landmarks, labels
        )

    def at(self, level: Level) -> PairBatch:
        """The pairs on the grid of a level."""
        size = level.image_size
        landmarks = self.landmarks
        if landmarks is not None:
            landmarks = rescale_points(landmarks, self.fixed.shape[2:], size)
        (fixed, fixed_mask), (moving, moving_mask) = (
            _resized(image, mask, size)
            for image, mask in ((self.fixed, self.fixed_mask), (self.moving, self.moving_mask))
        )
        certainty = None if self.fixed_certainty is None else resize(self.fixed_certainty, size)
        return PairBatch(fixed, moving, fixed_mask, moving_mask, certainty, landmarks, self.labels)


def _resized(image: Tensor, mask: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    if mask is None or image.shape[2:] == tuple(size):
        return resize(image, size), mask
    weight = resize(mask, size)
    # what is masked out must not leak into the voxels around it
    return weighted_mean(resize(image * mask, size), weight), weight
