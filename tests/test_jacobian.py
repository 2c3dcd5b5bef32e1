# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import noise
from torch.autograd import gradcheck

from monai_nodeo.geometry import _slabs as slabs
from monai_nodeo.geometry.jacobian import jacobian_determinant

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (6, 8, 5)]


def test_2d_equals_a_3d_slab_whichever_axis_is_the_flat_one() -> None:
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
def test_determinant_is_that_of_numpy(shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "SLAB_VOXELS", slab)
    dims = len(shape)
    ddf = noise(shape, batch=2)
    reference = []
    for field in ddf.numpy():
        columns = []
        for axis in range(dims):
            cut = tuple(slice(None) if a == axis else slice(0, -1) for a in range(dims))
            columns.append(np.stack([np.diff(component, axis=axis)[cut] for component in field], -1))
        reference.append(np.linalg.det(np.eye(dims) + np.stack(columns, -1)))
    torch.testing.assert_close(jacobian_determinant(ddf), torch.from_numpy(np.stack(reference)))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_gradient_of_the_determinant(shape: tuple[int, ...]) -> None:
    assert gradcheck(jacobian_determinant, noise(shape, batch=2).requires_grad_())


@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 2, 9, 11, 13), (2, 9, 11), (1, 1, 9), (1, 4, 5, 5, 5, 5)])
def test_a_field_whose_channels_are_not_its_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W, D\).*got \(" + ", ".join(map(str, shape))):
        jacobian_determinant(torch.zeros(shape))
