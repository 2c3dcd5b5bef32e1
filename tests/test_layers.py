# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.autograd import gradcheck
from torch.nn import functional as F

from monai_nodeo.geometry.axes import apply_along_axes, interpolation_matrix, kernel_matrix, resampling_matrix
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing, odd_window

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (1, 8, 5)]
# Windows shorter and longer than the sides.
LAYERS: dict[str, Callable[..., SeparableSmoothing]] = {
    "average 3": lambda dims, **more: AveragingSmoothing(dims, 3, **more),
    "average 15": lambda dims, **more: AveragingSmoothing(dims, **more),
    "average 31": lambda dims, **more: AveragingSmoothing(dims, 31, **more),
    "gauss 0.8": lambda dims, **more: GaussianSmoothing(dims, 0.8, **more),
    "gauss 4, window 5": lambda dims, **more: GaussianSmoothing(dims, 4.0, 5, **more),
    "gauss 6": lambda dims, **more: GaussianSmoothing(dims, 6.0, **more),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
every_shape = pytest.mark.parametrize("shape", SHAPES)


def by_scipy(layer: SeparableSmoothing, x: np.ndarray) -> np.ndarray:
    """One pass along the spatial axes of (B, C, *spatial)."""
    for axis in range(2, x.ndim):
        if isinstance(layer, AveragingSmoothing):
            x = ndimage.uniform_filter1d(x, layer.window, axis=axis, mode="nearest")
        elif isinstance(layer, GaussianSmoothing):
            x = ndimage.gaussian_filter1d(x, layer.sigma, axis=axis, mode="nearest", radius=layer.window // 2)
    return x


# Layers


@every_layer
@every_shape
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_constant_stays_a_constant(
    make: Callable[..., SeparableSmoothing], shape: tuple[int, ...], passes: int
) -> None:
    constant = torch.full((2, len(shape), *shape), -3.7)

    torch.testing.assert_close(make(len(shape), passes=passes)(constant), constant)


@every_layer
@every_shape
def test_smoothing_is_scipys_with_the_border_repeated(
    make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]
) -> None:
    layer = make(len(shape))
    x = torch.randn(2, 3, *shape, dtype=torch.float64)

    torch.testing.assert_close(layer(x), torch.from_numpy(by_scipy(layer, x.numpy())))
    torch.testing.assert_close(layer(x.float()).double(), layer(x), rtol=0, atol=1e-6)


@every_layer
@every_shape
def test_two_passes_are_the_kernel_twice(make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]) -> None:
    once = make(len(shape))
    x = torch.randn(1, 2, *shape, dtype=torch.float64)

    torch.testing.assert_close(make(len(shape), passes=2)(x), once(once(x)))


@every_layer
@every_shape
def test_no_pass_is_the_identity(make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]) -> None:
    x = torch.randn(1, 2, *shape)

    assert torch.equal(make(len(shape), passes=0)(x), x)


@every_layer
@pytest.mark.parametrize("order", [*permutations(range(2)), *permutations(range(3))])
def test_smoothing_commutes_with_swapping_axes(make: Callable[..., SeparableSmoothing], order: tuple[int, ...]) -> None:
    layer = make(len(order))
    x = torch.randn(1, 2, *(9, 11, 13)[: len(order)], dtype=torch.float64)
    swap = (0, 1, *(2 + axis for axis in order))

    torch.testing.assert_close(layer(x.permute(swap)), layer(x).permute(swap))


@every_layer
@every_shape
def test_smoothing_commutes_with_mirroring(make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]) -> None:
    layer = make(len(shape))
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    for axis in range(2, x.ndim):
        torch.testing.assert_close(layer(x.flip(axis)), layer(x).flip(axis))


@every_layer
@every_shape
def test_smoothing_stays_within_the_range_of_its_input(
    make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]
) -> None:
    x = torch.rand(1, 2, *shape, dtype=torch.float64)

    smooth = make(len(shape))(x)

    assert smooth.amin() >= x.amin() - 1e-12
    assert smooth.amax() <= x.amax() + 1e-12


@every_layer
@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 3)])
@pytest.mark.parametrize("passes", [1, 2])
def test_gradient_of_smoothing(make: Callable[..., SeparableSmoothing], shape: tuple[int, ...], passes: int) -> None:
    assert gradcheck(make(len(shape), passes=passes), torch.randn(1, 2, *shape, dtype=torch.float64).requires_grad_())


@every_layer
@every_shape
def test_gradient_is_the_transposed_smoothing(make: Callable[..., SeparableSmoothing], shape: tuple[int, ...]) -> None:
    layer = make(len(shape), passes=2)
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, *shape, dtype=torch.float64)

    (gradient,) = torch.autograd.grad(layer(x), x, weight)

    transposed = [m.t() for m in layer.matrices(shape, torch.float64)]
    torch.testing.assert_close(gradient, apply_along_axes(weight, transposed))


@every_layer
def test_strided_input_gives_the_same(make: Callable[..., SeparableSmoothing]) -> None:
    layer = make(3)
    x = torch.randn(2, 9, 11, 13, 3).movedim(-1, 1)

    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@every_layer
def test_smoothing_has_nothing_to_learn_or_to_save(make: Callable[..., SeparableSmoothing]) -> None:
    layer = make(2)
    layer(torch.randn(1, 2, 9, 13))

    assert not list(layer.parameters())
    assert not layer.state_dict()


@every_layer
@pytest.mark.parametrize(("dims", "shape"), [(2, (1, 2, 9, 11, 13)), (3, (1, 3, 9, 11)), (2, (2, 9, 11))])
def test_other_dimensions_are_refused(
    make: Callable[..., SeparableSmoothing], dims: int, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"expected \(B, C\) and {dims} spatial axes, got shape \({shape[0]}, "):
        make(dims)(torch.zeros(shape))


@pytest.mark.parametrize("window", [4, 0, -3, 2])
def test_a_window_without_a_centre_is_refused(window: int) -> None:
    for make in (lambda: AveragingSmoothing(2, window), lambda: GaussianSmoothing(2, 1.0, window)):
        with pytest.raises(ValueError, match=rf"positive odd number of voxels, got {window}"):
            make()


@pytest.mark.parametrize("sigma", [0.0, -1.5])
def test_a_gaussian_needs_a_width(sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma must be positive .*got {sigma}"):
        GaussianSmoothing(3, sigma)


@every_layer
def test_passes_are_counted_from_zero(make: Callable[..., SeparableSmoothing]) -> None:
    with pytest.raises(ValueError, match="passes must not be negative, got -1"):
        make(3, passes=-1)


@pytest.mark.parametrize(("sigma", "window"), [(0.3, 3), (1.0, 7), (2.0, 13), (2.1, 15)])
def test_gaussian_reaches_three_standard_deviations(sigma: float, window: int) -> None:
    layer = GaussianSmoothing(3, sigma)

    assert layer.window == window
    assert len(layer.kernel()) == window


def test_a_kernel_of_ones_own() -> None:
    class Binomial(SeparableSmoothing):
        def kernel(self, scale: float = 1.0) -> tuple[float, ...]:
            return (1.0, 2.0, 1.0)

    x = torch.randn(1, 1, 9, 13, dtype=torch.float64)

    expected = x.numpy()
    for axis in (2, 3):
        expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    torch.testing.assert_close(Binomial(2)(x), torch.from_numpy(expected))


# Matrices


KERNELS = [(1.0,), (1.0, 1.0, 1.0), (1.0,) * 15, (0.1, 0.5, 2.0, 0.5, 0.1), (1.0, 2.0, 4.0)]


@pytest.mark.parametrize("kernel", KERNELS, ids=len)
@pytest.mark.parametrize("size", [1, 2, 9, 13])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_rows_are_weights_that_sum_to_one(kernel: tuple[float, ...], size: int, passes: int) -> None:
    matrix = kernel_matrix(kernel, size, passes, torch.float64)

    assert matrix.shape == (size, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))


@pytest.mark.parametrize("kernel", KERNELS, ids=len)
@pytest.mark.parametrize("size", [1, 2, 9, 13])
def test_replicated_border_is_scipys_nearest(kernel: tuple[float, ...], size: int) -> None:
    x = torch.randn(size, dtype=torch.float64)

    expected = ndimage.correlate1d(x.numpy(), np.array(kernel) / sum(kernel), mode="nearest")

    torch.testing.assert_close(kernel_matrix(kernel, size, dtype=torch.float64) @ x, torch.from_numpy(expected))


@pytest.mark.parametrize("passes", [1, 3])
def test_symmetric_kernel_gives_a_matrix_that_mirrors_onto_itself(passes: int) -> None:
    matrix = kernel_matrix((0.2, 1.0, 3.0, 1.0, 0.2), 13, passes, torch.float64)

    torch.testing.assert_close(matrix.flip(0, 1), matrix)
    # Where no border is in reach: the same row, shifted, and symmetric.
    reach = 2 * passes
    inside = matrix[reach:-reach]
    rows = torch.stack([row.roll(-i) for i, row in enumerate(inside)])
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    torch.testing.assert_close(inside[:, reach:-reach], inside[:, reach:-reach].t())


def test_passes_are_a_power() -> None:
    once = kernel_matrix((1.0,) * 7, 11, 1, torch.float64)

    torch.testing.assert_close(kernel_matrix((1.0,) * 7, 11, 3, torch.float64), once @ once @ once)
    assert torch.equal(kernel_matrix((1.0,) * 7, 11, 0, torch.float64), torch.eye(11, dtype=torch.float64))


def test_matrix_is_worked_out_in_float64_then_rounded() -> None:
    exact = kernel_matrix((1.0,) * 15, 160, passes=8, dtype=torch.float64)

    assert torch.equal(kernel_matrix((1.0,) * 15, 160, passes=8), exact.float())


@pytest.mark.parametrize(("nodes", "size"), [(1, 4), (3, 9), (4, 13), (3, 11), (5, 5), (9, 4)])
def test_interpolation_matrix_is_torchs_interpolation(nodes: int, size: int) -> None:
    lattice = torch.randn(2, 3, nodes)

    matrix = interpolation_matrix(nodes, size)

    assert matrix.shape == (size, nodes)
    torch.testing.assert_close(matrix.sum(1), torch.ones(size))
    expected = F.interpolate(lattice, size=size, mode="linear", align_corners=False)
    torch.testing.assert_close(lattice @ matrix.t(), expected)


@pytest.mark.parametrize(
    ("nodes", "shape", "mode"), [((3, 4), (9, 13), "bilinear"), ((3, 4, 2), (9, 13, 7), "trilinear")]
)
def test_interpolation_along_each_axis_is_torchs_on_the_grid(
    nodes: tuple[int, ...], shape: tuple[int, ...], mode: str
) -> None:
    lattice = torch.randn(2, len(nodes), *nodes)

    grid = apply_along_axes(lattice, [interpolation_matrix(n, size) for n, size in zip(nodes, shape, strict=True)])

    torch.testing.assert_close(grid, F.interpolate(lattice, size=shape, mode=mode, align_corners=False))


@pytest.mark.parametrize(("shape", "equation"), [((9, 13), "bcij,xi,yj->bcxy"), ((9, 11, 13), "bcijk,xi,yj,zk->bcxyz")])
def test_each_axis_is_multiplied_by_its_matrix(shape: tuple[int, ...], equation: str) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    matrices = [torch.randn(n + 2 - axis, n, dtype=torch.float64) for axis, n in enumerate(shape)]

    torch.testing.assert_close(apply_along_axes(x, matrices), torch.einsum(equation, x, *matrices))


@pytest.mark.parametrize("shape", [(9, 13), (9, 11, 13)])
def test_none_leaves_an_axis_alone(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)

    assert apply_along_axes(x, [None] * len(shape)) is x
    for axis, n in enumerate(shape):
        matrix = torch.randn(5, n, dtype=torch.float64)
        only: list[torch.Tensor | None] = [None] * len(shape)
        only[axis] = matrix
        expected = (x.movedim(2 + axis, -1) @ matrix.t()).movedim(-1, 2 + axis)
        torch.testing.assert_close(apply_along_axes(x, only), expected)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_gradient_along_axes(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    matrices = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in shape]

    assert gradcheck(lambda field, *m: apply_along_axes(field, m), (x, *matrices))


def test_matrix_made_in_inference_mode_serves_a_later_training() -> None:
    smooth = AveragingSmoothing(2, window=3)
    x = torch.rand(1, 1, 23, 29)
    with torch.inference_mode():
        smooth(x)

    smooth(x.requires_grad_()).sum().backward()

    assert x.grad is not None


@pytest.mark.parametrize(("kernel", "passes"), [((1.0, 1.0), 1), ((1.0,), -1)])
def test_matrix_of_nonsense_is_refused(kernel: tuple[float, ...], passes: int) -> None:
    with pytest.raises(ValueError, match="odd number"):
        kernel_matrix(kernel, 9, passes)


@pytest.mark.parametrize(
    ("length", "window"),
    [(0.1, 1), (1, 1), (1.9, 1), (2.5, 3), (3, 3), (4.2, 5), (5, 5), (7.3, 7), (21 / 5, 5), (9 / 3, 3)],
)
def test_a_window_is_the_nearest_odd_number(length: float, window: int) -> None:
    assert odd_window(length) == window


@pytest.mark.parametrize(("size", "new"), [(9, 17), (9, 9), (17, 9), (40, 8), (2, 2), (1, 1), (5, 2), (1, 4)])
def test_resampling_rows_sum_to_one_and_mirror(size: int, new: int) -> None:
    matrix = resampling_matrix(size, new)

    assert matrix.shape == (new, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    torch.testing.assert_close(matrix.flip(0, 1), matrix)
    if size == new:
        assert torch.equal(matrix, torch.eye(size, dtype=torch.float64))


@every_layer
@pytest.mark.parametrize(("shape", "spacing"), [((9, 13), (2.0, 1.0)), ((9, 11, 13), (1.0, 3.0, 1.5))])
def test_smoothing_is_as_long_in_mm_along_every_axis(
    make: Callable[..., SeparableSmoothing], shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    layer = make(len(shape))

    matrices = layer.matrices(shape, spacing=spacing)

    for matrix, own, side in zip(matrices, layer.matrices(shape), spacing, strict=True):
        assert torch.equal(matrix, own) == (side == min(spacing))
        reach = (matrix[matrix.shape[0] // 2] > 1e-6).sum() // 2 * side
        limit = layer.passes * (len(layer.kernel()) // 2) * min(spacing)
        assert reach <= limit + side / 2 + 1e-6
    doubled = layer.matrices(shape, spacing=[2 * side for side in spacing])
    assert all(torch.equal(a, b) for a, b in zip(matrices, doubled, strict=True))
