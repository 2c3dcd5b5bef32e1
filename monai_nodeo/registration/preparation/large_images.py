# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Large images are compared in larger voxels.

A flow is smooth: beyond some million voxels, smaller ones cost time and memory and hardly change it. The flow itself
belongs to no grid, and the image that it warps is the one that was given.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.matched_pair import MatchedPair
from monai_nodeo.data.placement import affine_3d, voxel_sides
from monai_nodeo.geometry.cropping import Box, box_on, box_size
from monai_nodeo.registration.optimisation.levels import Level, PairBatch, make_levels

__all__ = ["in_larger_voxels"]

logger = logging.getLogger(__name__)

_STEP = 1.02  # by which a voxel grows until the images are small enough


def in_larger_voxels(matched: MatchedPair, box: Box, most: int) -> tuple[MatchedPair, Box]:
    """A pair, and a box in it, on a grid that has at most so many voxels in the box; as it is if that is so already.

    Args:
        matched: on one grid.
        box: the part of the grid that is optimised.
        most: voxels.
    """
    size, spacing = tuple(matched.fixed.shape[1:]), voxel_sides(matched.fixed.affine, matched.fixed.ndim - 1)
    inside = math.prod(box_size(box, size))
    if inside <= most:
        return matched, box
    level = _level(size, spacing, inside / most)
    logger.info(
        "%s voxels are compared at %s, since max_voxels is %d.",
        "x".join(map(str, size)),
        "x".join(map(str, level.image_size)),
        most,
    )
    optional = ("fixed_mask", "moving_mask", "fixed_certainty", "landmarks")
    given: dict[str, Any] = {name: _batch(getattr(matched, name)) for name in optional}
    coarse = PairBatch(matched.fixed.as_tensor()[None], matched.moving.as_tensor()[None], **given).at(level)
    fixed, moving = _placed(coarse.fixed[0], matched.fixed), _placed(coarse.moving[0], matched.moving)
    found = {name: None if x is None else getattr(coarse, name)[0] for name, x in given.items()}
    return replace(matched, fixed=fixed, moving=moving, **found), box_on(box, size, level.image_size)


def _level(size: Sequence[int], spacing: Sequence[float], ratio: float) -> Level:
    """The finest level that has so many times fewer voxels."""
    factor = ratio ** (1 / len(size))
    while True:  # axes of long voxels stay as they are for a while, the others have to do for them
        level = make_levels(size, spacing, (factor,))[0]
        if math.prod(level.image_size) * ratio <= math.prod(size) * _STEP:
            return level
        factor *= _STEP


def _batch(x: Tensor | None) -> Tensor | None:
    """A batch of one, without meta."""
    plain = x.as_tensor() if isinstance(x, MetaTensor) else x
    return None if plain is None else plain[None]


def _placed(values: Tensor, image: MetaTensor) -> MetaTensor:
    """As an image over the same extent as another: the centres of the outermost voxels are the same."""
    affine = affine_3d(image).clone()
    for axis, (n, m) in enumerate(zip(image.shape[1:], values.shape[1:], strict=True)):
        affine[:3, axis] *= (n - 1) / max(m - 1, 1)
    meta = {name: value for name, value in image.meta.items() if name != "affine"}
    return MetaTensor(values, affine=affine, meta=meta)
