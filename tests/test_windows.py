# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from monai_nodeo.geometry.windows import Windows, window_sum

SHAPES = [(11, 9), (9, 7, 5), (4, 1, 6)]


def image_of(shape: tuple[int, ...], channels: int = 2) -> Tensor:
    return torch.randn(2, channels, *shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 3, 5, 7, 9, 15, 21])
def test_a_sum_is_that_of_the_voxels_inside(shape: tuple[int, ...], side: int) -> None:
    image = image_of(shape)
    sums = window_sum(image, [side] * len(shape))
    windows = (1, 1, *[side] * len(shape))
    means = ndimage.uniform_filter(image.numpy(), windows, mode="constant", cval=0)
    torch.testing.assert_close(sums, torch.from_numpy(means) * math.prod(windows))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mean_of_a_constant_is_the_constant(shape: tuple[int, ...], weighted: bool) -> None:
    weight = torch.rand(2, 1, *shape, dtype=torch.float64) if weighted else None
    constant = torch.full((2, 3, *shape), 7.0, dtype=torch.float64)
    windows = Windows(constant, 5, weight=weight)
    torch.testing.assert_close(windows.mean(constant), constant)
    torch.testing.assert_close(windows.image_mean(constant), constant[:, :, *[slice(1)] * len(shape)])


def test_windows_are_of_one_length_in_mm_and_odd() -> None:
    assert Windows(torch.empty(1, 1, 9, 9, 9), 9, (1, 1, 3)).sides == (9, 9, 3)
    assert Windows(torch.empty(1, 1, 9, 9, 9), 9, (1, 2, 20)).sides == (9, 5, 1)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight \(1, 2, 5, 5\) does not fit images \(1, 1, 5, 5\)"):
        Windows(torch.empty(1, 1, 5, 5), 3, weight=torch.ones(1, 2, 5, 5))
