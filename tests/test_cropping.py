# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from synthetic import smooth_ddf, smooth_image

from monai_nodeo.geometry.cropping import cropped, extended, foreground_box
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import warp

SHAPES = [(40, 31), (24, 31, 19)]


def island(shape: tuple[int, ...], start: int, stop: int, air: float = 0.0) -> torch.Tensor:
    """Air but for a box, (1, 1, *shape)."""
    image = torch.full((1, 1, *shape), air)
    inside = (..., *[slice(start, stop)] * len(shape))
    image[inside] = smooth_image(shape)[None][inside] + 1 + air
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("air", [0.0, -1000.0])
def test_the_box_holds_both_images_and_the_margin(shape, air):
    box = foreground_box(island(shape, 6, 9, air), island(shape, 8, 13, air), margin=3)
    assert box == (slice(3, 3 + 16),) * len(shape)  # 13 voxels, and more to make 16
    clipped = foreground_box(island(shape, 6, 9), island(shape, 8, 13), margin=10)
    assert clipped == tuple(slice(0, min(32, n)) for n in shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_cropped_of_images_without_air(shape):
    noise = torch.rand(1, 1, *shape)
    constant = torch.ones(1, 1, *shape)
    for pair in ((noise, constant), (constant, constant)):
        assert cropped(noise, foreground_box(*pair)).shape == noise.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_field_comes_back_to_the_grid_it_was_cropped_from(shape):
    fixed, moving = island(shape, 6, 12), island(shape, 7, 13)
    box = foreground_box(fixed, moving, margin=4)
    ddf = smooth_ddf(shape, sigma=4)[None]
    full = extended(cropped(ddf, box), box, shape)
    assert full.shape == ddf.shape
    assert torch.equal(cropped(full, box), cropped(ddf, box))
    assert torch.equal(full[0, :, -1].amax(), full[0, :, box[0].stop - 1].amax())  # continued, not faded out
    torch.testing.assert_close(cropped(warp(moving, full), box), cropped(warp(moving, ddf), box))
    assert (jacobian_determinant(full) > 0).all()
