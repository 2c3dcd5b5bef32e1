# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a registered pair, in memory, and of the machine that registered it; as plain dicts for JSON."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_nodeo.data.pair import INPUT_KEYS
from monai_nodeo.data.placement import affine_3d, on_grid_of, voxel_sides
from monai_nodeo.geometry.resizing import refine_ddf
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses.landmarks import landmark_errors
from monai_nodeo.metrics.fields import folded_cell_count, folding_fraction, mean_displacement, sd_log_jacobian
from monai_nodeo.metrics.labels import label_metrics, landmark_metrics

__all__ = ["device_name", "pair_figures", "peak_memory_mb"]


def pair_figures(item: Mapping[str, Any], output: Mapping[str, Any], similarity: nn.Module) -> dict[str, Any]:
    """Figures of a pair before and after: similarity loss (lower is better), overlap and distances, and the field.

    Before is after the affine start, if there is one. With labels there are Dice and HD95, with landmarks the TRE.

    Args:
        item: "fixed", (1, *spatial), "fixed_input" and "moving_input", (1, *spatial of the optimisation), perhaps
            "fixed_label", (1, *spatial), "moving_label" (1, *its own spatial), "landmarks" (N, 2, D), in voxels of
            "fixed_input", and "initial_affine" (4, 4).
        output: "pred", the ddf (D, *spatial), and perhaps "warped_label", (1, *spatial).
        similarity: loss of two images (B, C, *spatial).
    """
    ddf = _plain(output["pred"])[None]
    fixed, moving = (_plain(item[key]).to(ddf)[None] for key in INPUT_KEYS)
    spacing = voxel_sides(item["fixed"].affine, item["fixed"].ndim - 1)
    optimised = refine_ddf(ddf, fixed.shape[2:]) if fixed.shape[2:] != ddf.shape[2:] else ddf
    figures: dict[str, Any] = {
        side: {"similarity": similarity(image, fixed).item()}
        for side, image in (("before", moving), ("after", warp(moving, optimised)))
    }
    if "fixed_label" in item:
        before = on_grid_of(item["fixed"], item["moving_label"], item.get("initial_affine"), mode="nearest")
        for side, label in (("before", before), ("after", output["warped_label"])):
            figures[side] |= label_metrics(_plain(label), _plain(item["fixed_label"]), spacing)
    if "landmarks" in item:
        for side, field in (("before", torch.zeros_like(optimised)), ("after", optimised)):
            errors = landmark_errors(field, item["landmarks"][None])[0]
            figures[side] |= landmark_metrics(errors, _voxel_to_mm(item))
    if "initial_affine" in item:
        figures["initial_affine"] = item["initial_affine"].tolist()
    return {
        **figures,
        "folding_percent": 100 * folding_fraction(ddf).item(),
        "folded_cells": int(folded_cell_count(ddf)),
        "sd_log_jacobian": sd_log_jacobian(ddf).item(),
        "displacement_mm_mean": mean_displacement(ddf, spacing).item(),
    }


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far: allocated on a CUDA device for this pair, else resident of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kibibytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def device_name(device: torch.device) -> str:
    """Name of a CUDA device, or the number of threads of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _plain(x: Tensor) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _voxel_to_mm(item: Mapping[str, Any]) -> Tensor:
    """(3, D), a vector in voxels of the landmarks -> mm where the moving image lies."""
    fixed = item["fixed_input"]
    axes = affine_3d(fixed)[:3, : fixed.ndim - 1]
    return item["initial_affine"][:3, :3].to(axes) @ axes if "initial_affine" in item else axes
