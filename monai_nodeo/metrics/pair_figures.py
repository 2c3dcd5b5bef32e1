# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a registered pair, in memory, as plain dicts for JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.data.pair import Pair
from monai_nodeo.data.placement import on_grid_of, voxel_sides
from monai_nodeo.metrics.fields import (
    folding_fraction,
    learn2reg_sd_log_jacobian,
    mean_displacement,
    sd_log_jacobian,
)
from monai_nodeo.metrics.labels import label_metrics, landmark_metrics

__all__ = ["field_figures", "overlap_figures", "quantile_figures"]


def overlap_figures(
    pair: Pair, start: Tensor | None, ddf: Tensor, points: Callable[[Tensor], Tensor]
) -> dict[str, dict[str, Any]]:
    """Dice and HD95 of labels, and the TRE of landmarks, before and after; what the pair has of them.

    Before is after the affine start, if there is one. Distances of landmarks are measured in the moving image.

    Args:
        pair: as it was loaded.
        start: (4, 4), RAS mm, fixed point -> moving point.
        ddf: displacement in voxels of the fixed grid, (D, *spatial), without the start.
        points: fixed points (N, 3) RAS mm -> moving points, start included.
    """
    figures: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
    fixed = pair.fixed
    if fixed.label is not None and pair.moving.label is not None:
        spacing = voxel_sides(fixed.image.affine, pair.spatial_dims)
        for side, field in (("before", None), ("after", ddf)):
            label = on_grid_of(fixed.image, pair.moving.label, start, field, mode="nearest")
            figures[side] |= label_metrics(label.as_tensor().cpu(), fixed.label.as_tensor(), spacing)
    if fixed.landmarks is not None and pair.moving.landmarks is not None:
        started = fixed.landmarks if start is None else fixed.landmarks @ start[:3, :3].T + start[:3, 3]
        for side, there in (("before", started), ("after", points(fixed.landmarks))):
            figures[side] |= landmark_metrics(pair.moving.landmarks - there, torch.eye(3))
    return figures


def field_figures(ddf: Tensor, spacing: tuple[float, ...], folded_cells: int) -> dict[str, Any]:
    """How far a displacement (D, *spatial) in voxels goes, and how it deforms; how many cells fold is known."""
    field = ddf[None]
    return {
        "folding_percent": 100 * folding_fraction(field).item(),
        "folded_cells": folded_cells,
        "sd_log_jacobian": sd_log_jacobian(field).item(),
        "learn2reg_sd_log_jacobian": learn2reg_sd_log_jacobian(field).item() if min(field.shape[2:]) > 4 else None,
        "displacement_mm_mean": mean_displacement(field, spacing).item(),
    }


def quantile_figures(values: NDArray) -> dict[str, float]:
    """How values are spread: median, 90 % and 99 % quantile; nothing of no values."""
    levels = {"median": 0.5, "quantile_90": 0.9, "quantile_99": 0.99}
    return {name: float(np.quantile(values, level)) for name, level in levels.items()} if values.size else {}
