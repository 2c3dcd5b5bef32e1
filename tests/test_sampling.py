# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from synthetic import noise, voxels
from torch.nn import functional as F

from monai_nodeo.geometry import _slabs as slabs
from monai_nodeo.geometry.coordinates import identity_grid
from monai_nodeo.geometry.sampling import make_warp, sample, warp, warp_in_slabs, weighted_mean

WARPED = [(9, 13), (9, 11, 13)]


@pytest.mark.parametrize("cloud", [(8, 9, 7), (7, 5, 6), (1, 5, 6), (5, 4)])
@pytest.mark.parametrize("reach", [0.0, 0.2, 3.0])
def test_a_cloud_of_any_size_samples_what_grid_sample_does(cloud, reach, monkeypatch):
    """Slab by slab, at the border itself, and far outside, where nothing depends on the position."""
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 90)
    image = torch.rand(2, 2, *(6, 7, 8)[: len(cloud)], requires_grad=True)
    phi = (identity_grid(cloud) + reach * torch.randn(2, len(cloud), *cloud)).requires_grad_()
    weight = torch.rand(2, 2, *cloud)
    here = sample(image, phi)
    theirs = F.grid_sample(image, phi.movedim(1, -1).flip(-1), padding_mode="border", align_corners=True)
    torch.testing.assert_close(here, theirs, atol=1e-6, rtol=0)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (image, phi)) for x in (here, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["image", "phi"])
def test_a_gradient_that_nobody_wants_is_not_made(wanted):
    inputs = {"image": torch.rand(1, 2, 5, 6, 7), "phi": identity_grid((3, 4, 5))}
    inputs[wanted].requires_grad_()
    sample(**inputs).sum().backward()
    assert {name for name, x in inputs.items() if x.grad is not None} == {wanted}


@pytest.mark.parametrize(
    ("shape", "shift"), [((9, 13), (2, -3)), ((9, 13), (0, 5)), ((9, 11, 13), (1, -2, 3)), ((9, 11, 13), (-4, 0, 0))]
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_whole_voxel_translation_picks_voxels_and_repeats_the_border(shape, shift, mode):
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    ddf = torch.tensor(shift, dtype=torch.float64).view(1, -1, *[1] * len(shape)).expand(2, -1, *shape)
    warped = warp(image, ddf, mode)
    index = np.ix_(*[np.clip(np.arange(n) + d, 0, n - 1) for n, d in zip(shape, shift, strict=True)])
    torch.testing.assert_close(warped, image[(..., *index)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", WARPED)
def test_nearest_makes_no_new_labels(shape):
    labels = torch.randint(0, 5, (1, 1, *shape)).double() * 7
    ddf = noise(shape, 2.0)
    warped = warp(labels, ddf, "nearest")
    limits = torch.tensor(shape).view(1, -1, *[1] * len(shape)) - 1
    nearest = (voxels(shape) + ddf).round().long().clamp(min=0).minimum(limits)[0]
    torch.testing.assert_close(warped[0, 0], labels[(0, 0, *nearest)])


def test_outside_is_border_or_what_is_asked_for():
    image = torch.ones(1, 1, 5, 6)
    far = torch.full((1, 2, 5, 6), 20.0)
    assert (warp(image, far) == 1).all()
    assert (warp(image, far, padding_mode="zeros") == 0).all()


@pytest.mark.parametrize("shape", WARPED)
def test_slabs_warp_as_the_whole_does(shape, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 90)
    image, ddf = torch.rand(2, 2, *shape), 3 * torch.randn(2, len(shape), *shape)
    torch.testing.assert_close(warp_in_slabs(image, ddf), warp(image, ddf), rtol=0, atol=1e-5)


def test_warp_is_monais_without_its_notice(recwarn):
    assert isinstance(make_warp("nearest", "zeros"), Warp)
    assert not recwarn.list


def test_a_weighted_mean_is_zero_where_nothing_counts():
    total, weight = torch.tensor([[[6.0, 0.0, 1e-9]]]), torch.tensor([[[2.0, 0.0, 1e-12]]])
    assert weighted_mean(total, weight).tolist() == [[[3.0, 0.0, 0.0]]]
