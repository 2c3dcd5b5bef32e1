# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI metrics of a displacement field. Dice and Hausdorff distance of warped labels are MONAI's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from monai.utils import MetricReduction
from torch import Tensor

from monai_nodeo.metrics.fields import folded_cell_count, folding_fraction, mean_displacement, sd_log_jacobian

__all__ = ["FoldedCellCountMetric", "FoldingFractionMetric", "MeanDisplacementMetric", "SDLogJacobianMetric"]


class _FieldMetric(CumulativeIterationMetric):
    """A number for each displacement of a batch.

    Args:
        reduction: how :py:meth:`aggregate` sums up the batches, see ``monai.metrics``.
    """

    def __init__(self, reduction: MetricReduction | str = MetricReduction.MEAN) -> None:
        super().__init__()
        self.reduction = reduction

    @abstractmethod
    def _values(self, ddf: Tensor) -> Tensor:
        """(B, D, *spatial) -> (B,)."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Values (B, 1) of ``y_pred``, the displacement in voxels (B, D, *spatial); ``y`` is not needed."""
        return self._values(torch.as_tensor(y_pred)).unsqueeze(1)

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Tensor:
        """The values of all batches so far, reduced."""
        return do_metric_reduction(self.get_buffer(), reduction or self.reduction)[0]


class FoldingFractionMetric(_FieldMetric):
    """:py:func:`folding_fraction` as a MONAI metric; called with the ddf in voxels, (B, D, *spatial)."""

    def _values(self, ddf: Tensor) -> Tensor:
        return folding_fraction(ddf)


class FoldedCellCountMetric(_FieldMetric):
    """:py:func:`folded_cell_count` as a MONAI metric; called with the ddf in voxels, (B, D, *spatial)."""

    def _values(self, ddf: Tensor) -> Tensor:
        return folded_cell_count(ddf)


class SDLogJacobianMetric(_FieldMetric):
    """:py:func:`sd_log_jacobian` as a MONAI metric; called with the ddf in voxels, (B, D, *spatial)."""

    def _values(self, ddf: Tensor) -> Tensor:
        return sd_log_jacobian(ddf)


class MeanDisplacementMetric(_FieldMetric):
    """:py:func:`mean_displacement` as a MONAI metric; called with the ddf in voxels, (B, D, *spatial).

    Args:
        spacing: voxel size, one for all axes or one an axis.
        reduction: how :py:meth:`aggregate` sums up the batches.
    """

    def __init__(
        self, spacing: float | Sequence[float] = 1.0, reduction: MetricReduction | str = MetricReduction.MEAN
    ) -> None:
        super().__init__(reduction)
        self.spacing = spacing

    def _values(self, ddf: Tensor) -> Tensor:
        return mean_displacement(ddf, self.spacing)
