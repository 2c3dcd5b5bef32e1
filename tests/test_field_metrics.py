# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor, decollate_batch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from monai_nodeo.geometry.folding import folded_cells
from monai_nodeo.metrics import (
    FoldedCellCountMetric,
    FoldingFractionMetric,
    MeanDisplacementMetric,
    SDLogJacobianMetric,
    folded_cell_count,
    folding_fraction,
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


def noise(shape: tuple[int, ...], batch: int = 1, size: float = 0.4) -> Tensor:
    return size * torch.randn(batch, len(shape), *shape, dtype=torch.float64)


def determinants(ddf: Tensor) -> list[np.ndarray]:
    """By numpy, forward differences, a flat array for each of the batch."""
    dims = ddf.shape[1]
    result = []
    for field in ddf.numpy():
        jacobian = np.zeros((*[n - 1 for n in field.shape[1:]], dims, dims))
        for i in range(dims):
            for a in range(dims):
                cut = tuple(slice(None) if axis == a else slice(0, -1) for axis in range(dims))
                jacobian[..., i, a] = np.diff(field[i], axis=a)[cut] + (i == a)
        result.append(np.linalg.det(jacobian).ravel())
    return result


def assert_reduced(value: Tensor, expected: Tensor) -> None:
    """MONAI reduces in float32."""
    torch.testing.assert_close(value.float(), expected.float())


# Values


@every_shape
def test_folding_fraction_is_numpys(shape: tuple[int, ...]) -> None:
    ddf = noise(shape, batch=3)
    fraction = folding_fraction(ddf)
    expected = [(d <= 0).mean() for d in determinants(ddf)]
    assert min(expected) > 0
    np.testing.assert_allclose(fraction.numpy(), expected, rtol=1e-6)


@every_shape
def test_folded_cells_are_counted_in_each_field(shape: tuple[int, ...]) -> None:
    ddf = noise(shape, batch=3)
    ddf[1] = 0
    counts = folded_cell_count(ddf)
    assert counts[1] == 0
    assert counts[0] == int(folded_cells(ddf[:1]).sum()) > 0
    # any one-sided difference sees more than the forward ones
    assert counts[0] > sum(d <= 0 for d in determinants(ddf)[0])


@every_shape
def test_sd_log_jacobian_is_numpys(shape: tuple[int, ...]) -> None:
    ddf = noise(shape, batch=3)
    expected = [np.log(np.maximum(d, 1e-9)).std() for d in determinants(ddf)]
    np.testing.assert_allclose(sd_log_jacobian(ddf).numpy(), expected, rtol=1e-9)


@every_shape
@pytest.mark.parametrize("spacing", [1.0, 0.7, (0.5, 1.25, 3.0), (2, 1, 1)])
def test_mean_displacement_is_numpys(shape: tuple[int, ...], spacing: float | tuple[float, ...]) -> None:
    ddf = noise(shape, batch=3)
    spacing = spacing[: len(shape)] if isinstance(spacing, tuple) else spacing
    size = np.broadcast_to(spacing, len(shape)).reshape(-1, *[1] * len(shape))
    expected = [np.linalg.norm(field * size, axis=0).mean() for field in ddf.numpy()]
    np.testing.assert_allclose(mean_displacement(ddf, spacing).numpy(), expected, rtol=1e-9)


# As MONAI metrics


@every_shape
@every_metric
def test_metric_accumulates_batches_and_resets(
    shape: tuple[int, ...], metric_class: type[CumulativeIterationMetric], function: Callable[[Tensor], Tensor]
) -> None:
    metric = metric_class()
    batches = [noise(shape, batch=2), noise(shape, batch=3)]
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
def test_metric_takes_decollated_lists_and_meta_tensors(
    shape: tuple[int, ...], metric_class: type[CumulativeIterationMetric], function: Callable[[Tensor], Tensor]
) -> None:
    batch = noise(shape, batch=3)
    metric = metric_class()
    metric(decollate_batch(MetaTensor(batch)))
    torch.testing.assert_close(torch.as_tensor(metric.aggregate("none").squeeze(1)), function(batch))


def test_voxel_sizes_are_an_argument() -> None:
    batch, sides = noise((9, 11, 13), batch=3), (0.5, 1.25, 3.0)
    torch.testing.assert_close(MeanDisplacementMetric(spacing=sides)(batch)[:, 0], mean_displacement(batch, sides))


@every_shape
@every_metric
def test_metric_works_attached_to_an_engine(
    shape: tuple[int, ...], metric_class: type[CumulativeIterationMetric], function: Callable[[Tensor], Tensor]
) -> None:
    batches = [noise(shape, batch=2), noise(shape, batch=1)]
    engine = Engine(lambda _, batch: {"ddf": batch})
    handler = IgniteMetricHandler(metric_fn=metric_class(), output_transform=lambda output: (output["ddf"], None))
    handler.attach(engine, "figure")
    # The second run starts anew.
    for data in (batches[1:], batches):
        state = engine.run(data)
        values = torch.cat([function(batch) for batch in data])
        assert state.metrics["figure"] == pytest.approx(float(values.mean()))
        torch.testing.assert_close(state.metric_details["figure"].squeeze(1), values)


def test_field_of_nan_is_not_free_of_folds() -> None:
    assert folding_fraction(torch.full((1, 2, 5, 7), torch.nan)).item() == 1


def test_axis_of_one_voxel_is_refused() -> None:
    with pytest.raises(ValueError, match="one voxel"):
        folding_fraction(torch.zeros(1, 3, 9, 11, 1))
