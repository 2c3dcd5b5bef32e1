# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import copy
import itertools

import numpy as np
import pytest
import torch
from synthetic import smooth_image

from monai_nodeo.losses.mind import MINDSSCLoss, mind_ssc

SHAPES = [(25, 21), (13, 17, 11)]


def by_hand(image: np.ndarray, voxel: tuple[int, ...], radius: int, dilation: int) -> np.ndarray:
    """Distances of the pairs of patches around the neighbours of one inner voxel, from the definition."""
    dims = image.ndim
    neighbours = []
    for axis in range(dims):
        for step in (-dilation, dilation):
            place = np.array(voxel)
            place[axis] += step
            neighbours.append((axis, tuple(slice(p - radius, p + radius + 1) for p in place)))
    pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if a[0] != b[0]]
    return np.array([np.square(image[a[1]] - image[b[1]]).mean() for a, b in pairs])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1)])
def test_the_descriptor_follows_its_definition(shape, radius, dilation):
    image = smooth_image(shape)[None].double()
    voxel = tuple(n // 2 for n in shape)
    distances = by_hand(image[0, 0].numpy(), voxel, radius, dilation)
    relative = distances - distances.min()
    expected = np.exp(-relative / relative.mean())
    found = mind_ssc(image, radius, dilation)
    assert found.shape == (1, {2: 4, 3: 12}[len(shape)], *shape)
    np.testing.assert_allclose(found[(0, slice(None), *voxel)], expected, rtol=1e-6)
    assert 0 < found.min() < found.max() == 1
    assert (found.amax(1) == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: 300 * x - 1000])
def test_brightness_and_contrast_and_inversion_change_nothing(shape, change):
    image, other = smooth_image(shape, 1)[None].double(), smooth_image(shape, 2)[None].double()
    torch.testing.assert_close(mind_ssc(change(image)), mind_ssc(image))
    loss = MINDSSCLoss(len(shape))
    assert loss(change(image), image).item() == pytest.approx(0, abs=1e-12)
    assert loss(other, change(image)).item() == pytest.approx(loss(other, image).item())
    assert loss(other, image) > 0.01


def test_weights_are_of_voxels_and_steps_are_in_mm():
    first, second = (smooth_image((24, 21), seed)[None] for seed in (0, 1))
    weight = torch.rand(1, 1, 24, 21)
    values = MINDSSCLoss(2, reduction="none")(first, second)
    weighted = (values * weight).sum() / weight.sum()
    torch.testing.assert_close(MINDSSCLoss(2)(first, second, weight), weighted)
    torch.testing.assert_close(MINDSSCLoss(2)(first, second), values.mean())
    torch.testing.assert_close(MINDSSCLoss(2, reduction="sum")(first, second), values.sum())
    # every second line of an image, as voxels of twice the length, is seen as in the image but for the patch
    thin = mind_ssc(first, 1, 2, spacing=(2.0, 1.0))
    assert thin.shape == (1, 4, 24, 21)
    distances = [by_hand_thick(first[0, 0].numpy(), (12, 10), a, b) for a in (-1, 1) for b in (-2, 2)]
    relative = np.array(distances) - min(distances)
    np.testing.assert_allclose(thin[0, :, 12, 10], np.exp(-relative / relative.mean()), rtol=1e-4)


def by_hand_thick(image: np.ndarray, voxel: tuple[int, int], along: int, across: int) -> float:
    """Distance of two patches of 1 x 3 voxels, at a step along the thick axis and one across it."""
    i, j = voxel
    return float(np.square(image[i + along, j - 1 : j + 2] - image[i, j + across - 1 : j + across + 2]).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_finite_where_nothing_is(shape):
    image = smooth_image(shape)[None]
    image[:, :, : shape[0] // 2] = 0
    image.requires_grad_()
    target = torch.zeros(1, 1, *shape)
    target[:, :, 3:6] = 1
    MINDSSCLoss(len(shape))(image, target).backward()
    assert image.grad.isfinite().all()
    assert mind_ssc(torch.zeros(1, 1, *shape)).eq(1).all()


def test_a_kept_descriptor_is_that_of_the_target():
    first, second = (smooth_image(SHAPES[0], seed)[None] for seed in (0, 1))
    loss = MINDSSCLoss(2)
    before = loss(first, second)
    assert torch.equal(loss(first, second), before)
    second += smooth_image(SHAPES[0], 3)[None]
    assert torch.equal(loss(first, second), MINDSSCLoss(2)(first, second))
    assert not torch.equal(loss(first, second), before)
    assert torch.equal(copy.deepcopy(loss)(first, second), loss(first, second))
    with torch.inference_mode():
        assert torch.equal(loss(first.clone(), second.clone()), loss(first, second))


def test_images_that_do_not_fit():
    image = smooth_image(SHAPES[0])[None]
    with pytest.raises(ValueError, match="2 spatial axes and one shape"):
        MINDSSCLoss(2)(image, image[:, :, 1:])
    with pytest.raises(ValueError, match="3 spatial axes"):
        MINDSSCLoss(3)(image, image)
    with pytest.raises(ValueError, match="a channel at a time"):
        MINDSSCLoss(2)(image.repeat(1, 2, 1, 1), image.repeat(1, 2, 1, 1))
    for options in ({"radius": 0}, {"dilation": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            MINDSSCLoss(2, **options)
