# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from synthetic import determinants, noise
from torch.autograd import gradcheck

from monai_nodeo.geometry import _slabs as slabs
from monai_nodeo.geometry import determinants as either_way
from monai_nodeo.geometry.jacobian import jacobian_determinant

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (6, 8, 5)]


def test_2d_equals_a_3d_slab_whichever_axis_is_the_flat_one():
    flat = noise((9, 13))
    expected = jacobian_determinant(flat)
    for axis in range(3):
        channels = [0, 1]
        channels.insert(axis, 2)
        with_zero = torch.cat([flat, torch.zeros(1, 1, 9, 13, dtype=flat.dtype)], 1)[:, channels]
        slab = with_zero.unsqueeze(2 + axis).repeat_interleave(4, 2 + axis)
        determinant = jacobian_determinant(slab)
        assert determinant.shape[1 + axis] == 3
        for plane in determinant.unbind(1 + axis):
            torch.testing.assert_close(plane, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slab", [1, 2**18])
def test_determinant_is_that_of_linear_algebra(shape, slab, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", slab)
    ddf = noise(shape, batch=2)
    torch.testing.assert_close(jacobian_determinant(ddf), determinants(ddf))
    of_array = either_way.determinants(ddf.numpy())
    torch.testing.assert_close(torch.from_numpy(of_array), determinants(ddf))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_gradient_of_the_determinant(shape):
    assert gradcheck(jacobian_determinant, noise(shape, batch=2).requires_grad_())


@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 2, 9, 11, 13), (2, 9, 11), (1, 1, 9), (1, 4, 5, 5, 5, 5)])
def test_a_field_whose_channels_are_not_its_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W, D\).*got \(" + ", ".join(map(str, shape))):
        jacobian_determinant(torch.zeros(shape))
