# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing, odd_window

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (1, 8, 5)]
# Windows shorter and longer than the sides.
LAYERS: dict[str, Callable[..., SeparableSmoothing]] = {
    "average 3": lambda dims, **more: AveragingSmoothing(dims, 3, **more),
    "average 15": lambda dims, **more: AveragingSmoothing(dims, **more),
    "average 31": lambda dims, **more: AveragingSmoothing(dims, 31, **more),
    "average 5, twice": lambda dims, **more: AveragingSmoothing(dims, 5, **{"passes": 2, **more}),
    "gauss 0.8": lambda dims, **more: GaussianSmoothing(dims, 0.8, **more),
    "gauss 4, window 5": lambda dims, **more: GaussianSmoothing(dims, 4.0, 5, **more),
    "gauss 6": lambda dims, **more: GaussianSmoothing(dims, 6.0, **more),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
every_shape = pytest.mark.parametrize("shape", SHAPES)


def by_scipy(layer: SeparableSmoothing, x: np.ndarray) -> np.ndarray:
    """All passes along the spatial axes of (B, C, *spatial)."""
    for axis in [*range(2, x.ndim)] * layer.passes:
        if isinstance(layer, AveragingSmoothing):
            x = ndimage.uniform_filter1d(x, layer.window, axis=axis, mode="nearest")
        elif isinstance(layer, GaussianSmoothing):
            x = ndimage.gaussian_filter1d(x, layer.sigma, axis=axis, mode="nearest", radius=layer.window // 2)
    return x


@every_layer
@every_shape
def test_smoothing_is_scipys_with_the_border_repeated(make, shape):
    layer = make(len(shape))
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.from_numpy(by_scipy(layer, x.numpy())))
    torch.testing.assert_close(layer(x.float()).double(), layer(x), rtol=0, atol=1e-6)


@every_layer
@every_shape
def test_gradient_is_the_transposed_smoothing(make, shape):
    layer = make(len(shape), passes=2)
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, *shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(x), x, weight)
    transposed = [m.t() for m in layer.matrices(shape, torch.float64)]
    torch.testing.assert_close(gradient, apply_along_axes(weight, transposed))


@every_layer
@pytest.mark.parametrize(("dims", "shape"), [(2, (1, 2, 9, 11, 13)), (3, (1, 3, 9, 11)), (2, (2, 9, 11))])
def test_other_dimensions_are_refused(make, dims, shape):
    with pytest.raises(ValueError, match=rf"expected \(B, C\) and {dims} spatial axes, got shape \({shape[0]}, "):
        make(dims)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda n=n: AveragingSmoothing(2, n), f"positive odd number of voxels, got {n}") for n in (4, 0, -3, 2)],
        *[(lambda n=n: GaussianSmoothing(2, 1.0, n), f"positive odd number of voxels, got {n}") for n in (4, 0)],
        *[(lambda s=s: GaussianSmoothing(3, s), f"sigma must be positive .*got {s}") for s in (0.0, -1.5)],
        (lambda: AveragingSmoothing(3, passes=-1), "passes must not be negative, got -1"),
    ],
)
def test_layers_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("sigma", "window"), [(0.3, 3), (1.0, 7), (2.0, 13), (2.1, 15)])
def test_gaussian_reaches_three_standard_deviations(sigma, window):
    layer = GaussianSmoothing(3, sigma)
    assert layer.window == window
    assert len(layer.kernel()) == window


@pytest.mark.parametrize(
    ("length", "window"),
    [(0.1, 1), (1, 1), (1.9, 1), (2.5, 3), (3, 3), (4.2, 5), (5, 5), (7.3, 7), (21 / 5, 5), (9 / 3, 3)],
)
def test_a_window_is_the_nearest_odd_number(length, window):
    assert odd_window(length) == window


@every_layer
@pytest.mark.parametrize(("shape", "spacing"), [((9, 13), (2.0, 1.0)), ((9, 11, 13), (1.0, 3.0, 1.5))])
def test_smoothing_is_as_long_in_mm_along_every_axis(make, shape, spacing):
    layer = make(len(shape))
    matrices = layer.matrices(shape, spacing=spacing)
    for matrix, own, side in zip(matrices, layer.matrices(shape), spacing, strict=True):
        assert torch.equal(matrix, own) == (side == min(spacing))
        reach = (matrix[matrix.shape[0] // 2] > 1e-6).sum() // 2 * side
        limit = layer.passes * (len(layer.kernel()) // 2) * min(spacing)
        assert reach <= limit + side / 2 + 1e-6
    doubled = layer.matrices(shape, spacing=[2 * side for side in spacing])
    assert all(torch.equal(a, b) for a, b in zip(matrices, doubled, strict=True))


def test_matrix_made_in_inference_mode_serves_a_later_training():
    smooth = AveragingSmoothing(2, window=3)
    x = torch.rand(1, 1, 23, 29)
    with torch.inference_mode():
        smooth(x)
    smooth(x.requires_grad_()).sum().backward()
    assert x.grad is not None
