# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scans import FLAT, VOLUME, make_affine, smooth

from monai_nodeo.data.intensity import to_unit_range


def image_of(*channels: np.ndarray) -> MetaTensor:
    values = torch.from_numpy(np.stack(channels).astype(np.float32))
    return MetaTensor(values, affine=torch.from_numpy(make_affine((1, 2, 3))), meta={"filename_or_obj": "a.nii.gz"})


@pytest.mark.parametrize("shape", [VOLUME, FLAT])
@pytest.mark.parametrize(("slope", "offset"), [(1, -1000), (255, 0), (1e-4, 0.5), (3e4, 1e5)])
def test_unit_and_zero_of_the_scanner_do_not_matter(shape, slope, offset):
    values = smooth(shape)
    expected = to_unit_range(image_of(values)).as_tensor()
    found = to_unit_range(image_of(slope * values.astype(np.float64) + offset)).as_tensor()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found.min(), found.max()) == (0, 1)


def test_a_few_bright_voxels_do_not_set_the_range():
    values = smooth((30, 32, 34))
    expected = to_unit_range(image_of(values)).as_tensor()
    values[2, 3, 4] = 1e6
    found = to_unit_range(image_of(values)).as_tensor()
    torch.testing.assert_close(found[:, 3:], expected[:, 3:], rtol=0, atol=0.01)
    assert found.max() == 1


@pytest.mark.parametrize("value", [1, 30000, 0.01])
def test_what_is_sparse_is_kept_whatever_its_value(value):
    balls = np.zeros(VOLUME)
    balls[4, 5, 5:8] = 1  # fewer voxels than the percentiles leave out
    torch.testing.assert_close(to_unit_range(image_of(value * balls))[0].as_tensor(), torch.from_numpy(balls).float())


def test_what_is_constant_is_nothing():
    assert not to_unit_range(image_of(np.full(VOLUME, 7.0))).any()


def test_each_channel_has_its_own_range_and_the_image_its_place():
    first, second = smooth(VOLUME, 1), 40 * smooth(VOLUME, 2)
    image = image_of(first, second)
    before = image.as_tensor().clone()
    found = to_unit_range(image)
    assert torch.equal(found[1].as_tensor(), to_unit_range(image_of(second))[0].as_tensor())
    torch.testing.assert_close(found.affine, image.affine)
    assert found.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(image.as_tensor(), before)
