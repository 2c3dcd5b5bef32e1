# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from monai_nodeo.geometry import _slabs as slabs
from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid
from monai_nodeo.geometry.sampling import sample, warp

SHAPES = [(9, 7), (6, 5, 8)]
WITH_SINGLE_VOXEL = [(1, 7), (6, 1, 8)]


@pytest.mark.parametrize("shape", SHAPES + WITH_SINGLE_VOXEL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sample_is_warp_in_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    # Multiples of 1/8 less 1/16 keep clear of the voxel centres, where the slope of a linear interpolation jumps.
    eighths = torch.randint(-20, 20, (2, len(shape), *shape)) / 8 + 1 / 16
    ddf = eighths.to(dtype).requires_grad_()
    image = torch.rand(2, 3, *shape, dtype=dtype, requires_grad=True)
    weight = torch.rand(2, 3, *shape, dtype=dtype)

    by_sample = sample(image, ddf_to_phi(ddf, identity_grid(shape, dtype=dtype)))
    by_warp = warp(image, ddf)

    torch.testing.assert_close(by_sample, by_warp, rtol=0, atol=20 * tolerance)
    moving = [axis for axis, n in enumerate(shape) if n > 1]
    (image_a, ddf_a), (image_b, ddf_b) = (
        torch.autograd.grad((out * weight).sum(), (image, ddf)) for out in (by_sample, by_warp)
    )
    torch.testing.assert_close(image_a, image_b, rtol=0, atol=100 * tolerance)
    torch.testing.assert_close(ddf_a[:, moving], ddf_b[:, moving], rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_gradient_of_sample(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    offset = (torch.randint(-4, 4, (1, len(shape), *shape)) / 8 + 1 / 16).double()
    phi = ddf_to_phi(offset, identity_grid(shape, dtype=torch.float64)).requires_grad_()

    assert gradcheck(sample, (image, phi))


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_at_the_identity_is_the_image(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, 2, *shape, dtype=torch.float64)

    torch.testing.assert_close(sample(image, identity_grid(shape, dtype=torch.float64)), image)


@pytest.mark.parametrize("cloud", [(8, 9, 7), (7, 5, 6), (1, 5, 6), (5, 4)])
@pytest.mark.parametrize("reach", [0.0, 0.2, 3.0])
def test_a_cloud_of_any_size_samples_what_grid_sample_does(
    cloud: tuple[int, ...], reach: float, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_gradient_that_nobody_wants_is_not_made(wanted: str) -> None:
    inputs = {"image": torch.rand(1, 2, 5, 6, 7), "phi": identity_grid((3, 4, 5))}
    inputs[wanted].requires_grad_()

    sample(**inputs).sum().backward()

    assert {name for name, x in inputs.items() if x.grad is not None} == {wanted}
