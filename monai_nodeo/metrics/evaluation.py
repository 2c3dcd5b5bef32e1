# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How well a transform brings labels and landmarks together, as plain dicts for JSON.

"Before" trusts the headers alone.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from monai_nodeo.files import Affine, ImageGrid, Transform, open_stored, read_points
from monai_nodeo.files.resampling import check_place, map_on_fields, resample
from monai_nodeo.metrics.labels import label_metrics, landmark_metrics

__all__ = ["label_figures", "landmark_figures"]

_LABEL_ROUNDING = 1e-4


def label_figures(transform: Transform, fixed_label: str, moving_label: str) -> dict[str, Any]:
    """Dice and HD95 (mm) of every label before and after, see `label_metrics`; warped with nearest neighbours.

    Args:
        transform: points of the fixed image -> points of the moving image.
        fixed_label: file of the label map of the fixed image.
        moving_label: file of the label map of the moving image, on its own grid.

    Returns:
        ``{"before": {...}, "after": {...}}``.

    Raises:
        ValueError: when the transform and the two maps do not belong together, or one is no label map.
    """
    moving, grid = open_stored(moving_label), ImageGrid.from_file(fixed_label)
    check_place(transform, grid, moving)
    spacing = nib.affines.voxel_sizes(grid.affine)[: grid.spatial_dims]
    truth = _labels(fixed_label, open_stored(fixed_label).load(), grid)
    sides = {"before": Transform((Affine(np.eye(4), transform.world_dims),)), "after": transform}
    return {
        side: label_metrics(_labels(moving_label, resample(moving, grid, way, "nearest"), grid), truth, spacing)
        for side, way in sides.items()
    }


def landmark_figures(transform: Transform, fixed_landmarks: str, moving_landmarks: str) -> dict[str, Any]:
    """Target registration error of landmarks before and after, in mm, see `landmark_metrics`.

    Landmarks beside a displacement field, as off the plane of a slice, are not displaced, and that is logged.

    Args:
        transform: points of the fixed image -> points of the moving image.
        fixed_landmarks: CSV table of points in the fixed image.
        moving_landmarks: the same points in the moving image, in the same order.

    Raises:
        ValueError: when a table is bad, they differ in length, or none lies on the field.
    """
    fixed, moving = read_points(fixed_landmarks).ras, read_points(moving_landmarks).ras
    if len(fixed) != len(moving):
        raise ValueError(
            f"{fixed_landmarks} holds {len(fixed)} points and {moving_landmarks} {len(moving)}; expected the same ones "
            "in the same order."
        )
    sides = {"before": fixed, "after": map_on_fields(transform, fixed, fixed_landmarks, enough=1)}
    return {side: landmark_metrics(moving - place, np.eye(3)) for side, place in sides.items()}


def _labels(name: str, values: np.ndarray, grid: ImageGrid) -> np.ndarray:
    """As whole numbers that torch holds, without the third axis of a slice."""
    if values.shape != grid.shape:
        raise ValueError(f"{name}: a series or an image with channels, expected one label map.")
    whole = np.rint(values)
    if np.abs(values - whole).max() > _LABEL_ROUNDING:
        raise ValueError(f"{name}: the values are no whole numbers, expected labels; is this the image?")
    return whole.astype(np.int64).reshape(grid.spatial_shape)
