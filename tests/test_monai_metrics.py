# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.metrics import CumulativeIterationMetric
from synthetic import determinants, noise
from torch import Tensor

from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.metrics import (
    FoldedCellCountMetric,
    FoldingFractionMetric,
    MeanDisplacementMetric,
    SDLogJacobianMetric,
    folded_cell_count,
    folding_fraction,
    learn2reg_sd_log_jacobian,
    mean_displacement,
    sd_log_jacobian,
)

SHAPES = [(9, 13), (9, 11, 13)]
METRICS: dict[type[CumulativeIterationMetric], Callable[[Tensor], Tensor]] = {
    FoldingFractionMetric: folding_fraction,
    FoldedCellCountMetric: folded_cell_count,
    SDLogJacobianMetric: sd_log_jacobian,
    MeanDisplacementMetric: mean_displacement,
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_metric = pytest.mark.parametrize(("metric_class", "function"), METRICS.items())


def assert_reduced(value: Tensor, expected: Tensor) -> None:
    """MONAI reduces in float32."""
    torch.testing.assert_close(value.float(), expected.float())


@every_shape
def test_folding_fraction_is_the_share_of_determinants(shape):
    ddf = noise(shape, 0.4, batch=3)
    fraction = folding_fraction(ddf)
    expected = (determinants(ddf) <= 0).flatten(1).double().mean(1)
    assert expected.min() > 0
    torch.testing.assert_close(fraction.double(), expected, rtol=1e-6, atol=0)


@every_shape
def test_folded_cells_are_counted_in_each_field(shape):
    ddf = noise(shape, 0.4, batch=3)
    ddf[1] = 0
    counts = folded_cell_count(ddf)
    assert counts[1] == 0
    assert counts[0] == int(folded_cells(ddf[:1]).sum()) > 0
    # any one-sided difference sees more than the forward ones
    assert counts[0] > (determinants(ddf)[0] <= 0).sum()


@every_shape
def test_sd_log_jacobian_is_that_of_the_determinants(shape):
    ddf = noise(shape, 0.4, batch=3)
    expected = determinants(ddf).clamp(min=1e-9).log().flatten(1).std(1, correction=0)
    torch.testing.assert_close(sd_log_jacobian(ddf), expected, rtol=1e-9, atol=0)


@every_shape
def test_learn2regs_spread_is_numpys(shape):
    ddf = noise(shape, 3.0, batch=2)
    axes = tuple(range(1, len(shape) + 1))
    inside = (..., *[slice(2, -2)] * len(shape))
    for field, found in zip(ddf.numpy(), learn2reg_sd_log_jacobian(ddf), strict=True):
        jacobian = np.stack(np.gradient(field, axis=axes), -1)
        determinant = np.linalg.det(np.moveaxis(jacobian, 0, -2) + np.eye(len(shape)))[inside]
        assert (determinant < -3).any()
        assert found.item() == pytest.approx(np.log((determinant + 3).clip(1e-9)).std(), rel=1e-9)
    with pytest.raises(ValueError, match="fewer than five voxels"):
        learn2reg_sd_log_jacobian(ddf[:, :, :4])


@every_shape
@pytest.mark.parametrize("spacing", [1.0, 0.7, (0.5, 1.25, 3.0), (2, 1, 1)])
def test_mean_displacement_is_numpys(shape, spacing):
    ddf = noise(shape, 0.4, batch=3)
    spacing = spacing[: len(shape)] if isinstance(spacing, tuple) else spacing
    size = np.broadcast_to(spacing, len(shape)).reshape(-1, *[1] * len(shape))
    expected = [np.linalg.norm(field * size, axis=0).mean() for field in ddf.numpy()]
    np.testing.assert_allclose(mean_displacement(ddf, spacing).numpy(), expected, rtol=1e-9)


@every_shape
@every_metric
def test_metric_accumulates_batches_and_resets(shape, metric_class, function):
    metric = metric_class()
    batches = [noise(shape, 0.4, batch=2), noise(shape, 0.4, batch=3)]
    for batch in batches:
        torch.testing.assert_close(metric(batch), function(batch).unsqueeze(1))
    values = torch.cat([function(batch) for batch in batches])
    assert_reduced(metric.aggregate().squeeze(), values.mean())
    assert_reduced(metric.aggregate("none").squeeze(1), values)
    assert_reduced(metric.aggregate("sum_batch").squeeze(), values.sum())
    metric.reset()
    metric(batches[0])
    assert_reduced(metric.aggregate().squeeze(), values[:2].mean())


@every_shape
@every_metric
def test_metric_takes_decollated_lists_and_meta_tensors(shape, metric_class, function):
    batch = noise(shape, 0.4, batch=3)
    metric = metric_class()
    metric(decollate_batch(MetaTensor(batch)))
    torch.testing.assert_close(torch.as_tensor(metric.aggregate("none").squeeze(1)), function(batch))


def test_voxel_sizes_are_an_argument():
    batch, sides = noise((9, 11, 13), batch=3), (0.5, 1.25, 3.0)
    torch.testing.assert_close(MeanDisplacementMetric(spacing=sides)(batch)[:, 0], mean_displacement(batch, sides))


def test_field_of_nan_is_not_free_of_folds():
    assert folding_fraction(torch.full((1, 2, 5, 7), torch.nan)).item() == 1


def test_axis_of_one_voxel_is_refused():
    with pytest.raises(ValueError, match="one voxel"):
        folding_fraction(torch.zeros(1, 3, 9, 11, 1))
