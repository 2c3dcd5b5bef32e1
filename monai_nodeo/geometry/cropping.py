# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Leave the air around two images out of the optimisation: in boxes of voxels, where displacements stay the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.transforms.utils import generate_spatial_bounding_box
from torch import Tensor

__all__ = ["Box", "box_on", "box_size", "cropped", "foreground_box"]

_DIVISOR = 16
_MARGIN = 16  # voxels around what is seen, for windows and displacements

Box = tuple[slice, ...]


def foreground_box(fixed: Tensor, moving: Tensor, margin: int = _MARGIN) -> Box:
    """The part of the grid outside which both images hold nothing but their minimum.

    What is exactly an image's minimum, as around a skull-stripped brain, is air. Noise is not, and stays in.

    Args:
        fixed: (B, C, *spatial).
        moving: the same shape.
        margin: voxels around it.

    Returns:
        A slice for each spatial axis; all of the grid if both images are constant.
    """
    held = (fixed > fixed.amin()) | (moving > moving.amin())
    start, stop = generate_spatial_bounding_box(held.flatten(0, 1), Tensor.bool, margin=margin, allow_smaller=True)
    return tuple(
        slice(*_divisible(low, high, size)) if high else slice(None)
        for low, high, size in zip(start, stop, fixed.shape[2:], strict=True)
    )


def box_size(box: Box, size: Sequence[int]) -> tuple[int, ...]:
    """Voxels of a box along each axis of a grid."""
    return tuple(len(range(n)[part]) for n, part in zip(size, box, strict=True))


def box_on(box: Box, size: Sequence[int], new_size: Sequence[int]) -> Box:
    """The box on a grid of fewer voxels over the same extent, with a margin of as many of the larger ones."""
    found = []
    for part, n, m in zip(box, size, new_size, strict=True):
        if part.start is None:
            found.append(part)
            continue
        scale = (m - 1) / (n - 1)
        more = _MARGIN * (1 - scale)
        low, high = math.floor(part.start * scale - more), math.ceil((part.stop - 1) * scale + more) + 1
        found.append(slice(*_divisible(max(0, low), min(m, high), m)))
    return tuple(found)


def _divisible(low: int, high: int, size: int) -> tuple[int, int]:
    """The range, longer so that its length divides well among threads, if there is room."""
    missing = -(high - low) % _DIVISOR
    after = min(missing, size - high)
    return max(0, low - (missing - after)), high + after


def cropped(tensor: Tensor, box: Box) -> Tensor:
    """The box of an image, mask or field (B, C, *spatial), as a contiguous tensor of its own."""
    index: tuple[Any, ...] = (..., *box)
    return tensor[index].contiguous()
