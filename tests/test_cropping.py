# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from synthetic import smooth_image

from monai_nodeo.geometry.cropping import cropped, foreground_box

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
def test_a_crop_is_a_tensor_of_its_own(shape):
    image = torch.rand(1, 2, *shape)
    box = tuple(slice(3, n - 5) for n in shape)
    inside = cropped(image, box)
    assert torch.equal(inside, image[(..., *box)])
    assert inside.is_contiguous()
    assert inside.untyped_storage().nbytes() == 4 * inside.numel()  # the rest of the image may be freed
