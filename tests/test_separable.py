# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_nodeo.geometry.separable import apply_along_axes, kernel_matrix, resampling_matrix


@pytest.mark.parametrize("shape", [(9, 13), (9, 11, 13)])
def test_none_leaves_an_axis_alone(shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    assert apply_along_axes(x, [None] * len(shape)) is x
    for axis, n in enumerate(shape):
        matrix = torch.randn(5, n, dtype=torch.float64)
        only: list[torch.Tensor | None] = [None] * len(shape)
        only[axis] = matrix
        expected = (x.movedim(2 + axis, -1) @ matrix.t()).movedim(-1, 2 + axis)
        torch.testing.assert_close(apply_along_axes(x, only), expected)


@pytest.mark.parametrize(("kernel", "passes"), [((1.0, 1.0), 1), ((1.0,), -1)])
def test_matrix_of_nonsense_is_refused(kernel, passes):
    with pytest.raises(ValueError, match="odd number"):
        kernel_matrix(kernel, 9, passes)


@pytest.mark.parametrize(("size", "new"), [(9, 17), (9, 9), (17, 9), (40, 8), (2, 2), (1, 1), (5, 2), (1, 4)])
def test_resampling_rows_sum_to_one_and_mirror(size, new):
    matrix = resampling_matrix(size, new)
    assert matrix.shape == (new, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    torch.testing.assert_close(matrix.flip(0, 1), matrix)
    if size == new:
        assert torch.equal(matrix, torch.eye(size, dtype=torch.float64))
