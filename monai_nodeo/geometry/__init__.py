# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Positions, displacements and samples as torch tensors; the only room that knows units and axis order."""

from __future__ import annotations

from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid, phi_to_ddf, rescale_points
from monai_nodeo.geometry.folding import folded_cells
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.resizing import resize, resize_ddf
from monai_nodeo.geometry.sampling import compose, sample, sample_points, warp
from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing

__all__ = [
    "AveragingSmoothing",
    "GaussianSmoothing",
    "SeparableSmoothing",
    "apply_along_axes",
    "compose",
    "ddf_to_phi",
    "folded_cells",
    "identity_grid",
    "jacobian_determinant",
    "phi_to_ddf",
    "rescale_points",
    "resize",
    "resize_ddf",
    "sample",
    "sample_points",
    "warp",
]
