# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from synthetic import quickly, smooth_ddf, smooth_image

from monai_nodeo.geometry.sampling import warp
from monai_nodeo.registration.optimisation.levels import PairBatch, coarser_first, make_levels

PAIRS = [((160, 192), (1.0, 1.0)), ((61, 40), (0.7, 2.0)), ((33, 29, 41), (1.0, 1.2, 0.9)), ((160, 192, 40), (1, 1, 5))]


def test_long_voxels_wait_for_the_others():
    """The example of the docstring: 1 x 1 x 5 mm shrunk by 4 is 4 x 4 x 5 mm."""
    coarse, middle, fine = make_levels((161, 201, 40), (1, 1, 5), (4, 2, 1))
    for level, spacing in ((coarse, (4, 4, 5)), (middle, (2, 2, 5)), (fine, (1, 1, 5))):
        assert level.spacing == pytest.approx(spacing, rel=0.03)
        assert level.image_size[2] == 40
    assert (fine.image_size, fine.spacing) == ((161, 201, 40), (1, 1, 5))
    (very_coarse,) = make_levels((161, 201, 41), (1, 1, 5), (8,))
    assert very_coarse.spacing == pytest.approx((8, 8, 8), rel=0.06)


@pytest.mark.parametrize(("size", "spacing"), PAIRS)
@pytest.mark.parametrize("point_spacing", [1, 2, 3.5])
def test_all_grids_have_the_extent_of_the_images(size, spacing, point_spacing):
    factors = (6, 4, 2.5, 1)
    levels = make_levels(size, spacing, factors, point_spacing)
    extent = [(n - 1) * s for n, s in zip(size, spacing, strict=True)]
    for index, level in enumerate(levels):
        assert (level.index, level.count, level.coarseness) == (index, 4, factors[index])
        for shape, sides in ((level.image_size, level.spacing), (level.cloud_size, level.cloud_spacing)):
            assert [(n - 1) * s for n, s in zip(shape, sides, strict=True)] == pytest.approx(extent)
        # a voxel is as long as asked for, or longer where the voxels of the pair are
        wanted = factors[index] * min(spacing)
        for n, s, own in zip(level.image_size, level.spacing, spacing, strict=True):
            assert s == pytest.approx(max(wanted, own), rel=0.12) or n == 8
        assert all(c <= n for c, n in zip(level.cloud_size, level.image_size, strict=True))
    assert levels[-1].image_size == size
    assert levels[-1].spacing == pytest.approx(spacing)
    assert (levels[-1].cloud_size == size) == (point_spacing == 1)


@pytest.mark.parametrize("size", [(12, 9), (8, 8), (5, 31), (1, 9), (12, 1, 9), (3, 3, 3)])
def test_small_images_keep_a_few_voxels(size):
    for level in make_levels(size, (1.0,) * len(size), (8, 4, 1), 2):
        for shape in (level.image_size, level.cloud_size):
            assert all(m == n if n <= 8 else 8 <= m <= n for m, n in zip(shape, size, strict=True))


@pytest.mark.parametrize(("factors", "points"), [((), 1), ((1, 2), 1), ((2, 0.5), 1), ((2, 1), 0.5), ((0,), 1)])
def test_factors_that_make_no_levels_are_refused(factors, points):
    with pytest.raises(ValueError, match="from coarse to fine"):
        make_levels((32, 32), (1.0, 1.0), factors, points)


def pair_of(shape: tuple[int, ...]) -> PairBatch:
    dims = len(shape)
    images = [smooth_image(shape, seed)[None] for seed in (0, 1)]
    masks = [(torch.rand(1, 1, *shape) > 0.3).float() for _ in range(2)]
    return PairBatch(*images, *masks, torch.rand(1, 1, *shape), 5 * torch.rand(1, 4, 2, dims))


@pytest.mark.parametrize("shape", [(31, 25), (17, 21, 13)])
def test_all_that_lies_on_the_grid_is_cropped_and_resized_alike(shape):
    pair = pair_of(shape)
    box = (slice(2, 14), slice(None), slice(3, 11))[: len(shape)]
    level, _ = make_levels(shape, (1.0,) * len(shape), (2, 1))
    for name in ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_certainty"):
        values = getattr(pair, name)
        assert torch.equal(getattr(pair.cropped(box), name), values[(..., *box)])
        assert getattr(pair.at(level), name).shape[2:] == level.image_size


@pytest.mark.parametrize("shape", [(31, 25), (17, 21, 13)])
def test_landmarks_keep_their_place(shape):
    """An image whose value is the position says where a landmark is, at every level and in a box."""
    dims = len(shape)
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]
    points = torch.tensor([4.0, 6.0, 8.0])[:dims].expand(1, 1, 2, dims)
    pair = PairBatch(index, index, landmarks=points)
    level, _ = make_levels(shape, (1.0,) * dims, (2, 1))
    coarse = pair.at(level)
    assert coarse.fixed.shape[2:] == level.image_size
    boxed = pair.cropped((slice(2, 20), slice(None), slice(3, 13))[:dims])
    assert torch.equal(boxed.landmarks[0, 0, 0], points[0, 0, 0] - torch.tensor([2.0, 0.0, 3.0])[:dims])
    place = tuple(boxed.landmarks[0, 0, 0].int().tolist())
    assert torch.equal(boxed.fixed[(0, slice(None), *place)], points[0, 0, 0])
    # a linear image is kept exactly away from the border
    scale = torch.tensor([(n - 1) / (m - 1) for n, m in zip(shape, level.image_size, strict=True)])
    torch.testing.assert_close(coarse.landmarks[0, 0, 0] * scale, points[0, 0, 0])
    low = coarse.landmarks[0, 0, 0].floor().int()
    torch.testing.assert_close(coarse.fixed[(0, slice(None), *low.tolist())], low * scale, atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [(33, 25), (17, 21, 13)])
def test_what_is_masked_out_does_not_leak_into_a_coarser_level(shape):
    pair = pair_of(shape)
    mask = torch.ones(1, 1, *shape)
    mask[..., shape[-1] // 2 :] = 0
    level, _ = make_levels(shape, (1.0,) * len(shape), (2, 1))
    found = [
        PairBatch(torch.where(mask > 0, pair.fixed, value), pair.moving, fixed_mask=mask).at(level)
        for value in (0.0, 1000.0)
    ]
    assert torch.equal(found[0].fixed, found[1].fixed)
    assert found[0].fixed_mask.amin() == 0
    assert found[0].fixed_mask.amax() == pytest.approx(1)
    flat = PairBatch(torch.where(mask > 0, 3.0, 50.0), pair.moving, fixed_mask=mask).at(level)
    counted = flat.fixed_mask > 1e-3
    torch.testing.assert_close(flat.fixed[counted], torch.full_like(flat.fixed[counted], 3.0))


@pytest.mark.parametrize(
    ("size", "spacing", "given", "expected"),
    [
        ((160, 192), (1.0, 1.0), [2, 1], [2, 1]),
        ((1164, 787), (1.0, 1.0), [2, 1], [16, 8, 4, 2, 1]),
        ((512, 512, 30), (0.7, 0.7, 5.0), [4, 2, 1], [8, 4, 2, 1]),
        ((64, 64, 900), (1.0, 1.0, 6.0), [4, 2, 1], [64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_large_images_have_coarser_levels_first(size, spacing, given, expected):
    assert coarser_first(size, spacing, given, 100) == expected
    assert max(make_levels(size, spacing, expected)[0].image_size) <= 100


def test_a_large_motion_in_a_large_image_is_found():
    shape = (240, 260)
    moving, ddf = smooth_image(shape, sigma=3.0), smooth_ddf(shape, 1, largest=25.0, sigma=30.0)
    fixed = warp(moving[None], ddf[None])[0]
    errors = [
        float((quickly(fixed, moving, iterations=(20, 10), coarsest_side=side).ddf - ddf).norm(dim=0).mean())
        for side in (None, 40)
    ]
    assert errors[1] < 0.5 * errors[0]
