# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is in a transform, as plain dicts for JSON; without torch, so that a file is shown at once."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from monai_nodeo.files import Affine, Displacement, Transform
from monai_nodeo.geometry.determinants import SMALLEST_DETERMINANT, central_determinants, determinants

__all__ = ["affine_figures", "displacement_figures", "transform_figures"]


def transform_figures(transform: Transform) -> list[dict[str, Any]]:
    """Figures of every step, in the order in which points go through them."""
    return [
        affine_figures(step) if isinstance(step, Affine) else {**_grid_figures(step), **displacement_figures(step)}
        for step in transform.steps
    ]


def affine_figures(affine: Affine) -> dict[str, Any]:
    """Matrix (RAS mm), angle of its rotation, scales along its own axes, determinant and translation."""
    dims = affine.world_dims
    linear = affine.matrix[:3, :3]
    left, _, right = np.linalg.svd(linear)
    rotation = left @ right  # the polar decomposition's
    proper = rotation * np.sign(np.linalg.det(rotation))  # a reflection has no angle of its own
    return {
        "kind": "affine",
        "world_dims": dims,
        "matrix_ras": affine.matrix.tolist(),
        "rotation_degrees": np.degrees(_angle(proper)).item(),
        "scales": np.linalg.svd(linear[:dims, :dims], compute_uv=False).tolist(),
        "determinant": np.linalg.det(linear).item(),
        "translation_mm_ras": affine.matrix[:dims, 3].tolist(),
    }


def _angle(rotation: np.ndarray) -> np.ndarray:
    """In radians, of a matrix (3, 3); exact for small angles and near half a turn."""
    twice_sine = np.linalg.norm((rotation - rotation.T)[[2, 0, 1], [1, 2, 0]])
    return np.arctan2(twice_sine, np.trace(rotation) - 1)


def displacement_figures(displacement: Displacement) -> dict[str, Any]:
    """How far the field moves its voxels, and whether it folds (forward differences)."""
    ddf = displacement.ddf.astype(np.float32)
    to_mm = displacement.grid.affine[:3, : len(ddf)].astype(np.float32)
    length = np.linalg.norm(np.tensordot(to_mm, ddf, 1), axis=0)
    volumes = determinants(ddf[None])
    folded = ~(volumes > 0)  # not "<= 0": a field that holds NaN is no field without folds
    return {
        "displacement_mm_mean": length.mean(dtype=np.float64).item(),
        "displacement_mm_max": length.max().item(),
        "folding_percent": 100 * folded.mean().item(),
        "folding_voxels": int(folded.sum()),
        "sd_log_jacobian": _spread(volumes),
        "learn2reg_sd_log_jacobian": _spread(central_determinants(ddf[None]) + 3) if min(ddf.shape[1:]) > 4 else None,
    }


def _spread(volumes: np.ndarray) -> float:
    """Standard deviation of the logarithm."""
    return np.log(volumes.clip(SMALLEST_DETERMINANT)).std(dtype=np.float64).item()


def _grid_figures(displacement: Displacement) -> dict[str, Any]:
    grid = displacement.grid
    return {
        "kind": "displacement",
        "world_dims": displacement.world_dims,
        "shape": list(grid.shape),
        "spacing_mm": nib.affines.voxel_sizes(grid.affine)[: len(grid.shape)].tolist(),
        "orientation": "".join(nib.aff2axcodes(grid.affine)),
        "affine_ras": grid.affine.tolist(),
    }
