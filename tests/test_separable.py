# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.autograd import gradcheck
from torch.nn import functional as F

from monai_nodeo.geometry.separable import apply_along_axes, interpolation_matrix, kernel_matrix, resampling_matrix

KERNELS = [(1.0,), (1.0, 1.0, 1.0), (1.0,) * 15, (0.1, 0.5, 2.0, 0.5, 0.1), (1.0, 2.0, 4.0)]


@pytest.mark.parametrize("kernel", KERNELS, ids=len)
@pytest.mark.parametrize("size", [1, 2, 9, 13])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_rows_are_weights_that_sum_to_one(kernel: tuple[float, ...], size: int, passes: int) -> None:
    matrix = kernel_matrix(kernel, size, passes, torch.float64)
    assert matrix.shape == (size, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))
    once = kernel_matrix(kernel, size, 1, torch.float64)
    torch.testing.assert_close(matrix, torch.linalg.matrix_power(once, passes))


@pytest.mark.parametrize("kernel", KERNELS, ids=len)
@pytest.mark.parametrize("size", [1, 2, 9, 13])
def test_replicated_border_is_scipys_nearest(kernel: tuple[float, ...], size: int) -> None:
    x = torch.randn(size, dtype=torch.float64)
    expected = ndimage.correlate1d(x.numpy(), np.array(kernel) / sum(kernel), mode="nearest")
    torch.testing.assert_close(kernel_matrix(kernel, size, dtype=torch.float64) @ x, torch.from_numpy(expected))


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


@pytest.mark.parametrize(("kernel", "passes"), [((1.0, 1.0), 1), ((1.0,), -1)])
def test_matrix_of_nonsense_is_refused(kernel: tuple[float, ...], passes: int) -> None:
    with pytest.raises(ValueError, match="odd number"):
        kernel_matrix(kernel, 9, passes)


@pytest.mark.parametrize(("size", "new"), [(9, 17), (9, 9), (17, 9), (40, 8), (2, 2), (1, 1), (5, 2), (1, 4)])
def test_resampling_rows_sum_to_one_and_mirror(size: int, new: int) -> None:
    matrix = resampling_matrix(size, new)
    assert matrix.shape == (new, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    torch.testing.assert_close(matrix.flip(0, 1), matrix)
    if size == new:
        assert torch.equal(matrix, torch.eye(size, dtype=torch.float64))
