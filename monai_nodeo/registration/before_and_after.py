# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The images of a pair on the fixed grid, before and after."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.data.pair import Pair
from monai_nodeo.data.placement import on_grid_of

__all__ = ["images_before_and_after"]


def images_before_and_after(
    pair: Pair, start: Tensor | None, warped: MetaTensor, warp: Callable[..., MetaTensor]
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """First channels as arrays.

    Args:
        pair: as it was loaded.
        start: (4, 4), RAS mm, fixed point -> moving point.
        warped: the moving image on the fixed grid.
        warp: image of the moving space, mode -> the same on the fixed grid.

    Returns:
        Images "fixed", "moving" (after the start) and "warped", (*spatial); masks by the same names, bool: where the
        image has voxels, those of its mask if there is one. The fixed image has voxels everywhere.
    """
    fixed, moving = pair.fixed, pair.moving
    images = {
        "fixed": fixed.image,
        "moving": on_grid_of(fixed.image, moving.image, start),
        "warped": warped,
    }
    masks: dict[str, Tensor] = {} if fixed.mask is None else {"fixed": fixed.mask}
    counts = torch.ones_like(moving.image[:1]) if moving.mask is None else moving.mask
    masks["moving"] = on_grid_of(fixed.image, counts, start, mode="nearest")
    masks["warped"] = warp(counts, "nearest")
    arrays, weights = ({k: _array(x) for k, x in found.items()} for found in (images, masks))
    return arrays, {name: weight > 0 for name, weight in weights.items()}


def _array(image: Tensor) -> NDArray:
    return torch.as_tensor(image)[0].detach().cpu().numpy()
