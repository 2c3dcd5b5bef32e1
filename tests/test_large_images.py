# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from synthetic import deformed_pair, quick_settings, quickly, smooth_image

from monai_nodeo.data.matched_pair import MatchedPair
from monai_nodeo.geometry.cropping import foreground_box
from monai_nodeo.registration.preparation.large_images import in_larger_voxels
from monai_nodeo.registration.settings import Settings, SettingsError

OBLIQUE = torch.tensor([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1]], dtype=torch.float64)


def a_pair(shape):
    image = torch.zeros(1, *shape)
    inside = tuple(slice(n // 4, n - n // 5) for n in shape)
    image[(0, *inside)] = smooth_image([part.stop - part.start for part in inside])[0] + 0.5
    mask = (image > 0).float()
    points = torch.tensor([[9.0, 12.0, 8.0], [15.0, 20.0, 10.0]], dtype=torch.float64)[:, None, : len(shape)]
    return MatchedPair(
        MetaTensor(image, affine=OBLIQUE),
        MetaTensor(image + 0, affine=OBLIQUE),
        mask,
        None,
        None,
        points.repeat(1, 2, 1),
    )


def test_a_pair_that_is_small_enough_is_left_as_it_is():
    pair = a_pair((30, 36))
    box = foreground_box(pair.fixed.as_tensor()[None], pair.moving.as_tensor()[None], 2)
    assert in_larger_voxels(pair, box, 30 * 36) == (pair, box)


@pytest.mark.parametrize("shape", [(70, 90), (60, 80, 40)])
def test_a_larger_pair_has_larger_voxels_over_the_same_extent(shape, caplog):
    caplog.set_level(logging.INFO)
    pair = a_pair(shape)
    everything = (slice(None),) * len(shape)
    most = math.prod(shape) // 6
    found, box = in_larger_voxels(pair, everything, most)
    new = found.fixed.shape[1:]
    assert caplog.messages == [
        f"{'x'.join(map(str, shape))} voxels are compared at {'x'.join(map(str, new))}, since max_voxels is {most}."
    ]
    assert box == everything
    assert most / 1.5 < math.prod(new) <= 1.05 * most
    for image in (found.fixed, found.moving):
        for index in ([0] * len(shape), [n - 1 for n in shape]):  # the outermost centres stay
            old = pair.fixed.affine @ torch.tensor([*index, *[0] * (3 - len(shape)), 1.0], dtype=torch.float64)
            moved = [i * (m - 1) / (n - 1) for i, n, m in zip(index, shape, new, strict=True)]
            here = image.affine @ torch.tensor([*moved, *[0] * (3 - len(shape)), 1.0], dtype=torch.float64)
            torch.testing.assert_close(here, old)
    scale = [(m - 1) / (n - 1) for n, m in zip(shape, new, strict=True)]
    np.testing.assert_allclose(found.landmarks, pair.landmarks * torch.tensor(scale))
    assert found.fixed_mask.shape == (1, *new)
    assert found.fixed[found.fixed_mask == 1].min() > 0.4  # what is masked out does not leak in


def test_the_box_keeps_its_margin_in_larger_voxels():
    pair = a_pair((160, 200))
    box = foreground_box(pair.fixed.as_tensor()[None], pair.moving.as_tensor()[None])
    inside = math.prod(part.stop - part.start for part in box)
    found, coarse = in_larger_voxels(pair, box, inside // 4)
    seen = found.fixed[0].nonzero()
    for axis, part in enumerate(coarse):
        assert max(0, int(seen[:, axis].min()) - 16) >= part.start
        assert min(found.fixed.shape[1 + axis], int(seen[:, axis].max()) + 17) <= part.stop


@pytest.mark.parametrize("shape", [(100, 110), (40, 44, 36)])
def test_the_flow_of_larger_voxels_warps_the_image_as_it_was_given(shape):
    fixed, moving, ddf = deformed_pair(shape, largest=3.0)
    whole = quickly(fixed, moving, iterations=(20, 10))
    found = quickly(fixed, moving, iterations=(20, 10), max_voxels=math.prod(shape) // 2)
    assert found.displacement.shape == ddf.shape
    assert math.prod(found.flow.domain.spatial_shape) < math.prod(whole.flow.domain.spatial_shape)
    inner = (slice(None), *[slice(6, -6)] * len(shape))
    before, after, fine = (float((x - ddf)[inner].norm(dim=0).mean()) for x in (0 * ddf, found.ddf, whole.ddf))
    assert fine < 0.3 * before
    assert after < 0.4 * before
    assert found.certificate.folded_cells == 0


def test_a_limit_that_leaves_no_image():
    with pytest.raises(SettingsError, match="max_voxels is 100, expected 4096 at least, or null"):
        Settings.preset(max_voxels=100)
    assert quick_settings(2, max_voxels=None).max_voxels is None
