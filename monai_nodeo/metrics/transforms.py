# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is in a transform, as plain dicts for JSON."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from monai_nodeo.files import Affine, Displacement, Transform
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.metrics.certificate import Certificate, certify_field
from monai_nodeo.metrics.fields import folding_fraction, learn2reg_sd_log_jacobian, sd_log_jacobian

__all__ = ["affine_figures", "certificates", "displacement_figures", "transform_figures"]


def transform_figures(transform: Transform) -> list[dict[str, Any]]:
    """Figures of every step, in the order in which points go through them."""
    return [
        affine_figures(step) if isinstance(step, Affine) else {**_grid_figures(step), **displacement_figures(step)}
        for step in transform.steps
    ]


def certificates(transform: Transform) -> list[Certificate]:
    """The certificate of each displacement, in the order in which points go through them."""
    return [
        certify_field(
            torch.tensor(step.ddf, dtype=torch.float32),
            torch.tensor(step.grid.affine[:3, : step.grid.spatial_dims], dtype=torch.float32),
        )
        for step in transform.steps
        if isinstance(step, Displacement)
    ]


def affine_figures(affine: Affine) -> dict[str, Any]:
    """Matrix (RAS mm), angle of its rotation, scales along its own axes, determinant and translation."""
    dims = affine.world_dims
    linear = affine.matrix[:3, :3]
    rotation, _ = polar(linear)
    proper = rotation * np.sign(np.linalg.det(rotation))  # a reflection has no angle of its own
    return {
        "kind": "affine",
        "world_dims": dims,
        "matrix_ras": affine.matrix.tolist(),
        "rotation_degrees": np.degrees(Rotation.from_matrix(proper).magnitude()).item(),
        "scales": np.linalg.svd(linear[:dims, :dims], compute_uv=False).tolist(),
        "determinant": np.linalg.det(linear).item(),
        "translation_mm_ras": affine.matrix[:dims, 3].tolist(),
    }


def displacement_figures(displacement: Displacement) -> dict[str, Any]:
    """How far the field moves its voxels, and whether it folds (forward differences)."""
    ddf = torch.tensor(displacement.ddf, dtype=torch.float32)[None]
    to_mm = torch.tensor(displacement.grid.affine[:3, : displacement.grid.spatial_dims], dtype=ddf.dtype)
    length = torch.linalg.vector_norm(torch.einsum("cd,bd...->bc...", to_mm, ddf), dim=1)
    return {
        "displacement_mm_mean": length.double().mean().item(),
        "displacement_mm_max": length.max().item(),
        "folding_percent": 100 * folding_fraction(ddf).item(),
        "folding_voxels": int((jacobian_determinant(ddf) <= 0).sum()),
        "sd_log_jacobian": sd_log_jacobian(ddf).item(),
        "learn2reg_sd_log_jacobian": learn2reg_sd_log_jacobian(ddf).item() if min(ddf.shape[2:]) > 4 else None,
    }


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
