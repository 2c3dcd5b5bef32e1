# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What lies between two slices, by registration of one to the other (Penney et al., IEEE TMI 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.flows import EulerianVelocity
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.registration.inferer import PairInferer

__all__ = ["between_slices"]

_BATCH = 16  # pairs of slices that are registered together
_FEWEST = 8  # voxels along the sides of a slice, with fewer there is nothing to register


def between_slices(slices: Tensor, spacing: Sequence[float], fractions: Sequence[float]) -> Tensor:
    """Images between each slice and the next: both, deformed towards each other along the way and averaged.

    Where a contour lies elsewhere in the next slice, their plain mean has it twice.

    Args:
        slices: (N, 1, X, Y).
        spacing: pixel size along X and Y in mm.
        fractions: of the way from a slice to the next.

    Returns:
        (N - 1, fractions, 1, X, Y).
    """
    before, after = slices[:-1], slices[1:]
    way = slices.new_zeros(len(before), 2, *slices.shape[2:])
    low, high = slices.flatten(1).amin(1), slices.flatten(1).amax(1)
    seen = (high > low) & (min(slices.shape[2:]) >= _FEWEST)
    together = (seen[:-1] & seen[1:]).nonzero().flatten()
    scaled = (slices - low.min()) / (high.max() - low.min()).clamp(min=torch.finfo(slices.dtype).tiny)
    # Half the resolution and a few steps: finer ones follow the noise and make no better slices.
    inferer = PairInferer(
        2,
        optimizer=partial(torch.optim.Adam, lr=0.6),
        iterations=(20,),
        shrink_factors=(2,),
        handlers=(),
        crop_air=False,
    )
    affine = torch.diag(torch.tensor([*spacing, 1.0, 1.0], dtype=torch.float64))
    for pairs in together.split(_BATCH) if len(together) else ():
        way[pairs] = inferer(MetaTensor(scaled[pairs], affine=affine), EulerianVelocity(2), scaled[pairs + 1])
    images = [(1 - t) * warp(before, -t * way) + t * warp(after, (1 - t) * way) for t in fractions]
    return torch.stack(images, dim=1)
