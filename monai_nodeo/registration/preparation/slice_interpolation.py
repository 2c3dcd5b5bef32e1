# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What lies between two slices, by registration of one to the other (Penney et al., IEEE TMI 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.flows import VelocityBatch
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf
from monai_nodeo.geometry.resizing import resize_ddf
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.registration.named_parts import make_loss, make_optimizer, make_solver, make_velocity
from monai_nodeo.registration.optimisation.fitting import Components, fit
from monai_nodeo.registration.optimisation.levels import PairBatch
from monai_nodeo.registration.settings import Settings

__all__ = ["between_slices"]

_BATCH = 16  # pairs of slices that are registered together
# Half the resolution and a few steps: finer ones follow the noise and make no better slices.
_COARSE: dict[str, Any] = {"iterations": [20], "shrink_factors": [2], "learning_rate": 0.6}
_FEWEST = 8  # voxels along the sides of a slice, with fewer there is nothing to register


@torch.no_grad()
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
    settings = Settings.preset(spatial_dims=2, **_COARSE)
    velocity, solver = make_velocity(settings), make_solver(settings)
    components = Components(velocity, solver, make_loss(settings), make_optimizer(settings), ())
    for pairs in together.split(_BATCH) if len(together) else ():
        with torch.enable_grad():
            fitted = fit(PairBatch(scaled[pairs], scaled[pairs + 1]), spacing, settings, components)
        nodes = identity_grid(fitted.level.cloud_size).expand(len(pairs), -1, -1, -1)
        found = solver(VelocityBatch(fitted.models).velocity(), nodes)[-1]
        way[pairs] = resize_ddf(phi_to_ddf(found, nodes), slices.shape[2:])
    images = [(1 - t) * warp(before, -t * way) + t * warp(after, (1 - t) * way) for t in fractions]
    return torch.stack(images, dim=1)
