# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A pair brought to one grid, as the optimisation sees it; masks that the images give are made in `data.masks`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.pair import Pair, PairError, source_name
from monai_nodeo.data.placement import (
    affine_3d,
    in_view,
    on_grid_of,
    same_grid,
    started,
    to_voxels,
    voxel_map,
    world_corners,
)

__all__ = ["MatchedPair", "match", "matched_labels"]

_SMALL_OVERLAP = 0.25

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """Two images on one grid.

    Attributes:
        fixed: (C, *spatial), whose grid it is.
        moving: (C, *spatial), sampled once through the affines and the start; outside its field of view its background.
        fixed_mask: 1 where the fixed image counts, else 0, (1, *spatial).
        moving_mask: the same of the moving image; 0 outside its field of view.
        fixed_certainty: how sure the fixed image is, in [0, 1], (1, *spatial).
        landmarks: (N, 2, D): for each point its voxel, and the voxel which the affines take to its partner.
        labels: of the fixed and the moving image, (2, *spatial): those that both have, numbered from 1; 0 elsewhere.
    """

    fixed: MetaTensor
    moving: MetaTensor
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_certainty: Tensor | None = None
    landmarks: Tensor | None = None
    labels: Tensor | None = None


def match(pair: Pair, start: Tensor | None = None, fixed_certainty: Tensor | None = None) -> MatchedPair:
    """Bring what the optimisation needs of the moving image to the fixed grid.

    Two slices are matched in their plane: the position along its normal is ignored, since slices of different levels
    may be registered.

    Args:
        pair: each image on its own grid.
        start: (4, 4), RAS mm, fixed physical point -> moving physical point.
        fixed_certainty: on the fixed grid, see `MatchedPair`.

    Raises:
        PairError: when the fields of view do not overlap, or only where the moving image shows nothing, no voxel is
            left that both masks count, or two slices lie in planes of different orientation.
    """
    fixed, moving = pair.fixed.image, pair.moving.image
    mapped = voxel_map(fixed, moving, start)
    if not same_grid(fixed, moving, mapped):
        _check_overlap(fixed, moving, mapped, start)
    seen = on_grid_of(fixed, moving, start)
    _check_content(moving, seen, start)
    moving_mask = None if pair.moving.mask is None else on_grid_of(fixed, pair.moving.mask, start, mode="nearest")
    _check_masks(pair, [mask for mask in (pair.fixed.mask, moving_mask) if mask is not None])
    landmarks = None
    if pair.fixed.landmarks is not None and pair.moving.landmarks is not None:
        here, there = to_voxels(pair.fixed.landmarks, fixed), to_voxels(pair.moving.landmarks, moving)
        back = torch.linalg.inv(mapped)
        landmarks = torch.stack([here, there @ back[:-1, :-1].T + back[:-1, -1]], dim=1)
    return MatchedPair(fixed, seen, pair.fixed.mask, moving_mask, fixed_certainty, landmarks)


def matched_labels(pair: Pair, fixed: MetaTensor, start: Tensor | None = None) -> Tensor:
    """The labels of both images on a grid, see `MatchedPair`.

    Args:
        pair: with its label maps.
        fixed: whose grid it is.
        start: as for :py:func:`match`.

    Raises:
        PairError: when there are no label maps, or they have no label in common there.
    """
    maps = pair.fixed.label, pair.moving.label
    if maps[0] is None or maps[1] is None:
        raise PairError(
            f"{source_name('fixed', pair.fixed.image)}: there are no label maps, and label_weight is above 0; give "
            "fixed_label and moving_label."
        )
    one, other = on_grid_of(fixed, maps[0], mode="nearest"), on_grid_of(fixed, maps[1], start, mode="nearest")
    values = [torch.as_tensor(x.as_tensor()[0]) for x in (one, other)]
    found, counts = torch.cat([x.unique() for x in values]).unique(return_counts=True)
    common = found[(counts == 2) & (found != 0)]
    if not len(common):
        raise PairError(
            f"{source_name('fixed_label', maps[0])} and {source_name('moving_label', maps[1])}: on the fixed grid they "
            "have no label in common, and label_weight is above 0; check the ids, or use no labels."
        )
    number = torch.searchsorted(common, torch.stack(values)).clamp(max=len(common) - 1)
    return torch.where(common[number] == torch.stack(values), number + 1, 0)


def _check_overlap(fixed: MetaTensor, moving: MetaTensor, mapped: Tensor, start: Tensor | None) -> None:
    seen = in_view(mapped, fixed.shape[1:], moving.shape[1:])
    share = int(seen.count_nonzero()) / seen.numel()
    extents = [
        _extent(affine, tuple(image.shape[1:]))
        for affine, image in ((started(fixed, start), fixed), (affine_3d(moving), moving))
    ]
    after = "" if start is None else "after the affine start "
    names = f"{source_name('fixed', fixed)} ({after}{extents[0]}) and {source_name('moving', moving)} ({extents[1]})"
    if share == 0:
        raise PairError(
            f"{names} do not overlap: no voxel of the fixed grid lies inside the moving image; {_other_start(start)}"
        )
    if share < _SMALL_OVERLAP:
        logger.warning("%s: the moving image covers %.1f %% of the fixed grid.", names, 100 * share)


def _check_content(moving: MetaTensor, seen: MetaTensor, start: Tensor | None) -> None:
    """Fields of view may overlap in the air alone."""
    low = float(seen.min())
    if low == float(seen.max()):
        raise PairError(
            f"{source_name('moving', moving)}: all that lies on the fixed grid is {low:g}, so there is nothing to "
            f"register; {_other_start(start)}"
        )


def _other_start(start: Tensor | None) -> str:
    if start is not None:
        return "give another initial_transform."
    return 'start with initial_transform "auto" or "moments", or repair the affine in one header.'


def _check_masks(pair: Pair, masks: Sequence[MetaTensor]) -> None:
    """That there is a voxel which all masks count."""
    if masks and not torch.stack([mask.as_tensor() for mask in masks]).amin(0).any():
        given = (("fixed_mask", pair.fixed.mask), ("moving_mask", pair.moving.mask))
        names = " and ".join(source_name(key, mask) for key, mask in given if mask is not None)
        raise PairError(
            f"{names}: on the fixed grid the masks exclude everything; check where they are greater than 0, "
            "or the alignment of the two images."
        )


def _extent(affine: Tensor, shape: tuple[int, ...]) -> str:
    corners = world_corners(affine, shape, margin=0.5)
    ranges = zip("xyz", corners.amin(1).tolist(), corners.amax(1).tolist(), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ranges) + " mm RAS"
