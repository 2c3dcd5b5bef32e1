# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of warped labels and landmarks, as plain dicts for JSON: Dice, Hausdorff distance, distances in mm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import compute_dice
from monai.metrics.utils import get_mask_edges, get_surface_distance
from monai.utils import convert_to_tensor
from scipy.ndimage import find_objects
from torch import Tensor

__all__ = ["label_metrics", "landmark_metrics"]


def label_metrics(label: NdarrayOrTensor, fixed_label: NdarrayOrTensor, spacing: Sequence[float]) -> dict[str, Any]:
    """Dice and 95th percentile of the Hausdorff distance for every label of the fixed image.

    The labels are those greater than 0 in ``fixed_label``; what else ``label`` holds is not scored. One that ``label``
    lacks has Dice 0, which counts in the mean, and no distance (None): ``hd95_mm_mean`` is over the labels that both
    maps hold. HD95 is MONAI's: between the voxels on the two surfaces, the larger of the two directed 95th
    percentiles.

    Args:
        label: label map to judge on the fixed grid, whole numbers of any dtype, (*spatial) or (1, *spatial).
        fixed_label: label map of the fixed image, same shape.
        spacing: voxel size in mm for each of the D tensor axes.

    Returns:
        ``{"dice": {label: value}, "dice_mean", "hd95_mm": {label: value}, "hd95_mm_mean"}``: int labels in ascending
        order, floats or None. A mean of nothing is None.

    Raises:
        ValueError: when the shapes differ or do not fit the spacing.

    Example:
        >>> fixed = torch.zeros(9, 11, dtype=torch.uint8)
        >>> fixed[2:6, 3:7] = 1
        >>> label_metrics(fixed.roll(2, 0), fixed, spacing=(1.5, 1.0))
        {'dice': {1: 0.5}, 'dice_mean': 0.5, 'hd95_mm': {1: 3.0}, 'hd95_mm_mean': 3.0}
    """
    dims = len(spacing)
    judged, truth = _spatial(label, dims), _spatial(fixed_label, dims)
    if judged.shape != truth.shape or truth.ndim != dims:
        raise ValueError(
            f"label {tuple(label.shape)}, fixed_label {tuple(fixed_label.shape)} and spacing {tuple(spacing)} differ; "
            "expected two maps (*spatial) or (1, *spatial) on one grid, and a spacing for each axis."
        )
    dice: dict[int, float | None] = {}
    hd95: dict[int, float | None] = {}
    # One label at a time in its own box: a one-hot of 35 labels of a brain takes a gigabyte.
    for value, box in _boxes(truth.numpy(), judged.numpy()):
        dice[value], hd95[value] = _mask_metrics(judged[box] == value, truth[box] == value, spacing)
    return {"dice": dice, "dice_mean": _mean(dice.values()), "hd95_mm": hd95, "hd95_mm_mean": _mean(hd95.values())}


def landmark_metrics(errors: NdarrayOrTensor, voxel_to_mm: NdarrayOrTensor) -> dict[str, Any]:
    """Target registration error: distances of moved points from where they belong.

    Args:
        errors: (N, D), vectors in voxels, see :py:func:`monai_nodeo.losses.landmarks.landmark_errors`.
        voxel_to_mm: (3, D), a vector in voxels -> mm. With an affine start this goes on to the moving image, so that
            distances are those that its scanner would measure.

    Returns:
        ``{"tre_mm": [value of each point], "tre_mm_mean"}``.

    Example:
        >>> errors, voxel_to_mm = np.array([[3.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> landmark_metrics(errors, voxel_to_mm)
        {'tre_mm': [5.0, 0.0], 'tre_mm_mean': 2.5}
    """
    vectors, matrix = (convert_to_tensor(x, dtype=torch.float64, track_meta=False) for x in (errors, voxel_to_mm))
    distances = torch.linalg.vector_norm(vectors.cpu() @ matrix.cpu().T, dim=1).tolist()
    return {"tre_mm": distances, "tre_mm_mean": _mean(distances)}


def _spatial(label: NdarrayOrTensor, dims: int) -> Tensor:
    tensor = convert_to_tensor(label, track_meta=False, device="cpu")
    return tensor[0] if tensor.ndim == dims + 1 and tensor.shape[0] == 1 else tensor


def _boxes(truth: np.ndarray, judged: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each label greater than 0 of the first map, and the smallest box that holds it in both."""
    values = np.unique(truth[truth > 0])
    for value, *found in zip(values.tolist(), *(_places(labels, values) for labels in (truth, judged)), strict=True):
        axes = zip(*[box for box in found if box is not None], strict=True)
        yield int(value), tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def _places(labels: np.ndarray, values: np.ndarray) -> list[tuple[slice, ...] | None]:
    """The box of each value, in one pass: to look through a volume for every label takes longer than to judge it."""
    counted = np.isin(labels, values)
    ranks = np.zeros(labels.shape, np.int32)  # an atlas may number its labels by the billion
    ranks[counted] = 1 + np.searchsorted(values, labels[counted])
    return find_objects(ranks, len(values))


def _mask_metrics(judged: Tensor, truth: Tensor, spacing: Sequence[float]) -> tuple[float | None, float | None]:
    """Dice and HD95 in mm of two boolean masks (*spatial), the second one not empty."""
    y_pred, y = judged[None, None], truth[None, None]
    dice = _plain(compute_dice(y_pred, y))
    if not judged.any():  # MONAI would warn and call the distance infinite
        return dice, None
    # The parts of MONAI's compute_hausdorff_distance: its crop, which is already done here, takes most of its time.
    edges = get_mask_edges(judged.numpy(), truth.numpy(), crop=False)
    distances = (get_surface_distance(*surfaces, spacing=list(spacing)) for surfaces in (edges, edges[::-1]))
    return dice, max(float(torch.quantile(torch.as_tensor(d), 0.95)) for d in distances)


def _plain(value: Tensor) -> float | None:
    number = float(value.squeeze())
    return number if math.isfinite(number) else None


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
