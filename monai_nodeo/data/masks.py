# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Masks that the images themselves give: what is not air, and what the moving image shows at all."""

from __future__ import annotations

import logging
from dataclasses import replace

from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.matched_pair import MatchedPair
from monai_nodeo.data.pair import Pair, source_name
from monai_nodeo.data.placement import in_view, voxel_map

__all__ = ["with_mask_of_air", "with_mask_of_view"]

_UNSEEN = 0.1  # of what the fixed image shows: from there on the field of view of the moving one is a mask

logger = logging.getLogger(__name__)


def with_mask_of_air(pair: Pair) -> Pair:
    """The pair with a fixed mask that counts only where the fixed image is above its minimum, unless it has one.

    For images of different contrast around which nothing was stored, such as skull-stripped brains: air is black
    whatever the contrast, so that no function of one image is the other one across the border of the brain. In images
    with noise in the air the mask holds nearly all voxels and changes little.
    """
    if pair.fixed.mask is not None:
        return pair
    image = pair.fixed.image
    inside = (image > image.min()).any(0, keepdim=True).to(image.dtype)
    mask = MetaTensor(inside.as_tensor(), affine=image.affine)  # with a meta of its own: there is no file of it
    return replace(pair, fixed=replace(pair.fixed, mask=mask))


def with_mask_of_view(matched: MatchedPair, moving: MetaTensor, start: Tensor | None = None) -> MatchedPair:
    """The same with the moving image's field of view as its mask, if that leaves out much and there is no mask.

    Nothing is known beyond the field of view. To fill it does no harm where it is air, but much where the fixed image
    goes on. ITK's metrics leave it out, too.

    Args:
        matched: the pair.
        moving: the image on its own grid.
        start: as for `match`.
    """
    if matched.moving_mask is not None:
        return matched
    fixed = matched.fixed.as_tensor()
    seen = in_view(voxel_map(matched.fixed, moving, start), fixed.shape[1:], moving.shape[1:])
    if seen.all():
        return matched
    shown = fixed - fixed.amin(tuple(range(1, fixed.ndim)), keepdim=True)
    unseen = float(shown[:, ~seen].sum() / shown.sum())
    if unseen <= _UNSEEN:
        return matched
    logger.info(
        "%s: %.0f %% of the fixed image lies outside, and does not count.", source_name("moving", moving), 100 * unseen
    )
    return replace(matched, moving_mask=MetaTensor(seen[None].to(fixed.dtype), affine=matched.fixed.affine))
