# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps of a pair's way to the grid of the fixed image: `MatchGridd`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from monai_nodeo.data.pair import IMAGE_KEYS, INPUT_KEYS, LANDMARK_KEYS, MASK_KEYS, PairError, source_name
from monai_nodeo.data.placement import affine_3d, on_grid_of, same_grid, started, to_voxels, voxel_map, world_corners

__all__ = [
    "MaskAirD",
    "MaskAirDict",
    "MaskAird",
    "MatchGridD",
    "MatchGridDict",
    "MatchGridd",
]

_SMALL_OVERLAP = 0.25

logger = logging.getLogger(__name__)


class MatchGridd(Transform):
    """Bring what the optimisation needs of the moving image to the grid of "fixed_input", or else of "fixed".

    "moving_input", or "moving" if it is not there, becomes "moving_input", sampled once (linear) through the fixed
    affine, "initial_affine" if there is one, and its own affine; outside its field of view it is its minimum.
    "moving_mask" is replaced by its nearest neighbours there, 0 outside. "fixed_landmarks" and "moving_landmarks" (RAS
    mm) become "landmarks", (N, 2, D): for each point its voxel on that grid and the voxel of it which the affines take
    to its partner. "moving" and "moving_label" stay as they are, for `WarpWithDDFd`.

    Two slices are matched in their plane: the position along its normal is ignored, since slices of different levels
    may be registered.

    Raises:
        PairError: when the fields of view do not overlap, or only where the moving image shows nothing, no voxel is
            left that both masks count, or two slices lie in planes of different orientation.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Match one pair.

        Args:
            data: MetaTensors "fixed" (C, *spatial) and "moving" (C, *its own spatial), perhaps "fixed_input" and
                "moving_input" (the same on grids of other voxels), "fixed_mask" and "moving_mask" (1, *spatial of its
                input), landmarks (N, 3) and "initial_affine" (4, 4).

        Returns:
            A new dict.
        """
        pair = dict(data)
        fixed, moving = (pair.get(key, pair[image]) for key, image in zip(INPUT_KEYS, IMAGE_KEYS, strict=True))
        start = pair.get("initial_affine")
        mapped = voxel_map(fixed, moving, start)
        if not same_grid(fixed, moving, mapped):
            _check_overlap(fixed, moving, mapped, start)
        pair |= {"fixed_input": fixed, "moving_input": on_grid_of(fixed, moving, start)}
        _check_content(moving, pair["moving_input"], start)
        if "moving_mask" in pair:
            pair["moving_mask"] = on_grid_of(fixed, pair["moving_mask"], start, mode="nearest")
        _check_masks(pair)
        if LANDMARK_KEYS[0] in pair:
            places = [
                to_voxels(pair.pop(key), image) for key, image in zip(LANDMARK_KEYS, (fixed, moving), strict=True)
            ]
            back = torch.linalg.inv(mapped)
            pair["landmarks"] = torch.stack([places[0], places[1] @ back[:-1, :-1].T + back[:-1, -1]], dim=1)
        return pair


class MaskAird(Transform):
    """Count only where "fixed" is above its minimum: adds "fixed_mask", unless there is one.

    For images of different contrast around which nothing was stored, such as skull-stripped brains: air is black
    whatever the contrast, so that no function of one image is the other one across the border of the brain. In images
    with noise in the air the mask holds nearly all voxels and changes little.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add the mask to one pair.

        Args:
            data: MetaTensor "fixed", (1, *spatial).

        Returns:
            A new dict with "fixed_mask", (1, *spatial), 1 or 0.
        """
        fixed = data["fixed"]
        mask = (fixed > fixed.min()).to(fixed.dtype)
        # with a meta of its own: there is no file of it
        return {"fixed_mask": MetaTensor(mask.as_tensor(), affine=fixed.affine), **data}


MatchGridD = MatchGridDict = MatchGridd
MaskAirD = MaskAirDict = MaskAird


def _check_overlap(fixed: MetaTensor, moving: MetaTensor, mapped: Tensor, start: Tensor | None) -> None:
    share = _overlap(mapped, tuple(fixed.shape[1:]), tuple(moving.shape[1:]))
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
    return 'start with initial_transform "affine" or "moments", or repair the affine in one header.'


def _check_masks(pair: Mapping[str, Any]) -> None:
    masks = [pair[key] for key in MASK_KEYS if key in pair]
    if masks and not torch.stack([mask.as_tensor() for mask in masks]).amin(0).any():
        names = " and ".join(source_name(key, pair[key]) for key in MASK_KEYS if key in pair)
        raise PairError(
            f"{names}: on the fixed grid the masks exclude everything; check where they are greater than 0, "
            "or the alignment of the two images."
        )


def _overlap(mapped: Tensor, fixed_shape: tuple[int, ...], moving_shape: tuple[int, ...]) -> float:
    """Share of the fixed voxel centres that lie inside a voxel of the moving image."""
    inside = torch.ones(fixed_shape, dtype=torch.bool)
    for row, size in zip(mapped[:-1], moving_shape, strict=True):
        position = row[-1]
        for axis, n in enumerate(fixed_shape):
            along = torch.arange(n, dtype=row.dtype).view(
                [-1 if axis == other else 1 for other in range(len(fixed_shape))]
            )
            position = position + row[axis] * along
        inside &= (position >= -0.5) & (position <= size - 0.5)
    return int(inside.count_nonzero()) / inside.numel()


def _extent(affine: Tensor, shape: tuple[int, ...]) -> str:
    corners = world_corners(affine, shape, margin=0.5)
    ranges = zip("xyz", corners.amin(1).tolist(), corners.amax(1).tolist(), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ranges) + " mm RAS"
