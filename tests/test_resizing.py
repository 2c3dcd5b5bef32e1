# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from synthetic import noise, voxels
from torch.nn import functional as F

from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid, phi_to_ddf
from monai_nodeo.geometry.resizing import resize, resize_ddf
from monai_nodeo.geometry.separable import resampling_matrix

RESIZED = [((9, 13), (17, 25)), ((9, 13), (5, 20)), ((9, 11, 13), (5, 6, 13)), ((6, 8, 5), (12, 9, 10))]
every_resize = pytest.mark.parametrize(("shape", "new"), RESIZED)


@every_resize
def test_resizing_keeps_constants_and_the_identity(shape, new):
    constant = torch.full((1, 2, *shape), 3.25)
    torch.testing.assert_close(resize(constant, new), torch.full((1, 2, *new), 3.25))
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    torch.testing.assert_close(resize(identity_grid(shape), finer), identity_grid(finer), atol=1e-6, rtol=0)
    image = torch.rand(1, 2, *shape)
    assert resize(image, shape) is image


def test_going_to_fewer_voxels_is_without_aliases():
    checkers = (-1.0) ** voxels((32, 40)).sum(1, keepdim=True).float()
    slow = torch.sin(voxels((32, 40))[:, :1].float() / 8)
    inside = (..., slice(1, -1), slice(1, -1))
    assert resize(checkers, (8, 10))[inside].abs().max() < 0.1  # a plain interpolation would pick 1s and -1s
    expected = F.interpolate(slow, (8, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize(slow, (8, 10))[inside], expected[inside], atol=0.05, rtol=0)


@every_resize
def test_resizing_up_is_torchs_interpolation(shape, new):
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    image = torch.rand(2, 3, *shape)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    torch.testing.assert_close(resize(image, finer), F.interpolate(image, finer, mode=mode, align_corners=True))


@every_resize
def test_a_displacement_keeps_its_length_on_another_grid(shape, new):
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    ddf = noise(shape, 2.0).float()
    by_phi = phi_to_ddf(resize(ddf_to_phi(ddf, identity_grid(shape)), finer), identity_grid(finer))
    torch.testing.assert_close(resize_ddf(ddf, finer), by_phi, atol=1e-5, rtol=0)
    assert resize_ddf(ddf, shape).equal(ddf)


@pytest.mark.parametrize(
    ("shape", "new"), [((3, 1300), (5, 401)), ((1300, 4), (700, 1500)), ((2, 3, 1100), (2, 4, 1250))]
)
def test_long_axes_are_resized_as_short_ones(shape, new):
    image = noise(shape)[:, :1].requires_grad_()
    expected = image
    for axis, (n, m) in enumerate(zip(shape, new, strict=True)):
        expected = torch.movedim(torch.movedim(expected, 2 + axis, -1) @ resampling_matrix(n, m).T, -1, 2 + axis)
    found = resize(image, new)
    torch.testing.assert_close(found, expected)
    weights = torch.rand_like(found)
    slopes = [torch.autograd.grad((x * weights).sum(), image, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes)
