# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import logging
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scans import SLICE, VOLUME, centred, load, make_affine, smooth

from monai_nodeo.data import PairError, as_image, find_start, match
from monai_nodeo.data.masks import with_mask_of_air, with_mask_of_view
from monai_nodeo.data.pair import Pair, stored_grid
from monai_nodeo.data.placement import on_grid_of, physical_map
from monai_nodeo.files import Affine, Transform, open_stored
from monai_nodeo.files.resampling import resample

LPS = np.diag([-1.0, -1, 1, 1])


def itk_resample(moving: str, fixed: str, start: np.ndarray | None = None, nearest: bool = False) -> np.ndarray:
    """(*spatial) of the moving file on the fixed file's grid, by SimpleITK from the headers and the start alone."""
    interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in (moving, fixed)]
    transform = sitk.AffineTransform(3)
    if start is not None:
        lps = LPS @ start @ LPS
        transform.SetMatrix(lps[:3, :3].ravel().tolist())
        transform.SetTranslation(lps[:3, 3].tolist())
    return sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], transform, interpolator, -1e4)).T


def at_the_edge(fixed: MetaTensor, moving: MetaTensor, start: np.ndarray) -> np.ndarray:
    """(*spatial) of fixed, true where a voxel lies on the border of the moving field of view, but for rounding."""
    index = np.vstack([np.indices(fixed.shape[1:]).reshape(3, -1), np.ones(fixed[0].numel())])
    position = np.linalg.inv(np.asarray(moving.affine)) @ start @ np.asarray(fixed.affine) @ index
    limit = np.array(moving.shape[1:])[:, None] - 0.5
    near = (np.abs(position[:3] + 0.5) < 1e-3) | (np.abs(position[:3] - limit) < 1e-3)
    return near.any(0).reshape(fixed.shape[1:])


MIDDLE = (40, -30, 20)
START = make_affine((1.1, 0.95, 1), (0.1, -0.2, 0.1))
START[:3, 3] = MIDDLE - START[:3, :3] @ MIDDLE
OBLIQUE = [
    ((1, 1, 1), (0, 0, 0), (1.5, 0.8, 1.2), (0, 0, 0)),
    ((1.0, 1.5, 2.0), (0.3, -0.2, 0.5), (1.4, 1.1, 1.7), (-0.1, 0.4, 0.2)),
    ((-1.0, 1.5, 2.0), (0.3, -0.2, 1.5), (1.4, -1.1, -1.7), (1.1, 0.4, 0.2)),
]


@pytest.mark.parametrize(("fixed_spacing", "fixed_angles", "moving_spacing", "moving_angles"), OBLIQUE)
@pytest.mark.parametrize("start", [np.eye(4), START])
def test_volumes_are_resampled_as_by_itk(save, start, fixed_spacing, fixed_angles, moving_spacing, moving_angles):
    fixed_shape, moving_shape = (15, 17, 19), (21, 26, 23)
    fixed_affine = centred(make_affine(fixed_spacing, fixed_angles), fixed_shape, MIDDLE)
    moving_affine = centred(make_affine(moving_spacing, moving_angles), moving_shape, (41.03, -29.04, 20.46))
    fixed = save("f.nii.gz", smooth(fixed_shape, 1), fixed_affine)
    moving = save("m.nii.gz", smooth(moving_shape, 2), moving_affine)
    label = save("l.nii.gz", (smooth(moving_shape, 3) // 10).astype(np.uint8), moving_affine)
    row = load(fixed, moving, fixed_label=np.ones(fixed_shape), moving_label=label)
    pair = match(row, torch.from_numpy(start))
    expected = itk_resample(moving, fixed, start)
    inside = expected > -1e4
    assert inside.mean() > 0.5
    edge = at_the_edge(pair.fixed, row.moving.image, start)  # rounding decides on which side of the field of view it is
    found = pair.moving.array[0]
    np.testing.assert_allclose(found[inside & ~edge], expected[inside & ~edge], atol=1e-3)  # of a range of 100
    assert (found[~inside & ~edge] == float(row.moving.image.min())).all()
    nearest = on_grid_of(row.fixed.image, row.moving.label, torch.from_numpy(start), mode="nearest").array[0]
    differing = nearest != np.maximum(itk_resample(label, fixed, start, nearest=True), 0)
    assert differing[~edge].mean() < 0.002  # halfway cases may round either way
    torch.testing.assert_close(pair.moving.affine, pair.fixed.affine, rtol=0, atol=0)
    assert pair.moving.meta["filename_or_obj"] == moving


CORONAL = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("level", [0.0, 7.5])
@pytest.mark.parametrize("base", [np.eye(4), CORONAL, make_affine((1, 1, 1), (0.4, -0.7, 0.3))])
def test_slices_are_resampled_in_their_plane(save, base, level):
    fixed_shape, moving_shape = (15, 17, 1), (24, 21, 1)
    fixed_affine = centred(base @ make_affine((1.0, 1.5, 2.0)), fixed_shape, (5, 6, 7))
    moving_affine = centred(base @ make_affine((1.2, 1.4, 5.0), (0, 0, 0.3)), moving_shape, (5, 6, 7))
    values = smooth(moving_shape, 2)
    fixed = save("f.nii.gz", smooth(fixed_shape, 1), fixed_affine)
    same_level = save("same_level.nii.gz", values, moving_affine)
    moving_affine[:3, 3] += level * base[:3, 2]
    moving = save("m.nii.gz", values, moving_affine)
    pair = match(load(fixed, moving))
    # ITK knows no levels to ignore: it takes the slice where the planes coincide, thick enough to be interpolated.
    expected = itk_resample(same_level, fixed)[..., 0]
    inside = expected > -1
    assert inside.mean() > 0.9
    np.testing.assert_allclose(pair.moving.array[0][inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize("shape", [VOLUME, SLICE])
def test_a_slightly_rounded_grid_keeps_its_voxels(save, shape):
    affine = make_affine((2, 0.5, 3), (0.3, 0.2, 0.1))
    rounded = affine.copy()
    rounded[:3, 3] += 0.002
    row = load(save("f.nii.gz", smooth(shape, 1), affine), save("m.nii.gz", smooth(shape, 2), rounded))
    before = row.moving.image.as_tensor().clone()
    pair = match(row)
    assert torch.equal(pair.moving.as_tensor(), before)
    torch.testing.assert_close(pair.moving.affine, row.fixed.image.affine, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_small_difference_of_the_grids_is_not_lost(save, scale):
    """MONAI's SpatialResample takes these two for equal: a matrix that differs by 9e-4, or voxels of micrometres."""
    shape = (200, 9, 11)
    ramp = np.broadcast_to(np.arange(200.0, dtype=np.float32)[:, None, None], shape)
    fixed = save("f.nii.gz", ramp, make_affine((scale, scale, scale)))
    moving = save("m.nii.gz", ramp, make_affine((scale * 1.0009, scale, scale)))
    pair = match(load(fixed, moving))
    np.testing.assert_allclose(pair.moving.array[0, :, 4, 5], np.arange(200) / 1.0009, atol=1e-3)


def test_outside_the_field_of_view_is_the_minimum_of_each_channel_and_no_label():
    images = torch.stack([torch.from_numpy(smooth(VOLUME, seed)) + low for seed, low in ((0, -1000), (1, 7))])
    labels = np.full(VOLUME, 5, np.uint8)
    away = MetaTensor(images, affine=torch.from_numpy(make_affine((1, 1, 1), origin=(5, 0, 0))))
    row = load(images, away, fixed_label=labels, moving_label=labels, moving_mask=labels)
    pair = match(row)
    for channel, image in zip(pair.moving, images, strict=True):
        assert channel[:5].unique().tolist() == [image.min()]
    torch.testing.assert_close(pair.moving.as_tensor()[:, 5:], images[:, :4])
    assert pair.moving_mask[0, :5].unique().tolist() == [0]
    assert pair.moving_mask[0, 5:].unique().tolist() == [1]
    label = on_grid_of(row.fixed.image, row.moving.label, mode="nearest")
    assert label[0, :5].unique().tolist() == [0]
    assert label[0, 5:].unique().tolist() == [5]


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("bilinear", "linear"), ("nearest", "nearest"), ("nearest", "label")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_files_and_tensors_have_the_same_outside(tmp_path, mode, interpolation, channels):
    """`apply` goes by files and ITK, `register` by tensors: one rule for what the moving image does not show."""
    values = np.stack([smooth(VOLUME, seed).round() - 30 * seed for seed in range(1, channels + 1)])
    stored = np.moveaxis(values, 0, -1)[..., None, :] if channels > 1 else values[0]
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "m.nii.gz")
    fixed, moving = as_image(smooth(VOLUME)), MetaTensor(torch.from_numpy(values))
    start = torch.eye(4, dtype=torch.float64)
    start[0, 3] = 4
    here = on_grid_of(fixed, moving, start, mode=mode).numpy()
    transform = Transform((Affine(start.numpy()),))
    there = resample(open_stored(tmp_path / "m.nii.gz"), stored_grid(fixed), transform, interpolation)
    np.testing.assert_allclose(np.moveaxis(there.reshape(*VOLUME, channels), -1, 0), here, rtol=0, atol=1e-4)
    for channel, image in zip(here, values, strict=True):
        assert np.unique(channel[5:]) == (image.min() if mode == "bilinear" else 0)


@pytest.mark.parametrize("shape", [VOLUME, SLICE])
def test_images_that_do_not_overlap(save, shape):
    fixed = save("f.nii.gz", smooth(shape))
    moving = save("m.nii.gz", smooth(shape), make_affine((1, 1, 1), origin=(0, 50, 0)))
    with pytest.raises(PairError) as info:
        match(load(fixed, moving))
    assert f"fixed {fixed} (x -0.5 to 8.5, y -0.5 to 10.5, z " in str(info.value)
    assert f"moving {moving} (x -0.5 to 8.5, y 49.5 to 60.5, z " in str(info.value)
    assert "do not overlap" in str(info.value)


def test_a_small_overlap_is_logged(save, caplog):
    fixed = save("f.nii.gz", smooth(VOLUME))
    moving = save("m.nii.gz", smooth(VOLUME), make_affine((1, 1, 1), origin=(8, 0, 0)))
    with caplog.at_level(logging.WARNING):
        match(load(fixed, moving))
    assert "covers 11.1 % of the fixed grid" in caplog.text


@pytest.mark.parametrize("work", [match, partial(find_start, initial_transform="auto")])
def test_slices_in_different_planes(work, save):
    fixed, moving = save("f.nii.gz", smooth(SLICE)), save("m.nii.gz", smooth(SLICE), CORONAL)
    with pytest.raises(
        PairError, match=r"m.nii.gz: its plane \(normal .*\) is not parallel to that of fixed .*f.nii.gz"
    ):
        work(load(fixed, moving))


def test_a_slice_seen_from_behind_is_turned(save):
    data = smooth(SLICE)
    flipped = np.diag([-1.0, 1, -1, 1])
    flipped[0, 3] = SLICE[0] - 1
    pair = match(load(save("f.nii.gz", data), save("m.nii.gz", data[::-1], flipped)))
    torch.testing.assert_close(pair.moving.as_tensor(), pair.fixed.as_tensor(), rtol=0, atol=1e-4)
    flat = match(load(save("f.nii.gz", data), save("flat.nii.gz", data[..., 0])))  # a true 2D image
    assert torch.equal(flat.moving.as_tensor(), flat.fixed.as_tensor())


def test_a_volume_does_not_match_a_slice(save):
    volume, flat = save("v.nii.gz", smooth(VOLUME)), save("s.nii.gz", smooth(SLICE))
    pair = Pair(load(volume, volume).fixed, load(flat, flat).moving)
    with pytest.raises(PairError, match="differ in dimension"):
        match(pair)


def test_a_field_of_view_is_a_mask_if_it_leaves_out_what_the_fixed_image_shows(save):
    values = np.zeros((24, 11, 13), np.float32)
    values[2:14] = smooth((12, 11, 13), 0) + 1

    def view_of(planes, **masks):
        pair = load(save("f.nii.gz", values), save("m.nii.gz", values[:planes]), **masks)
        return with_mask_of_view(match(pair), pair.moving.image).moving_mask

    assert view_of(24) is None
    assert view_of(15) is None  # air is left out
    view = view_of(9)
    assert view.shape == (1, *values.shape)
    assert view[:, :9].unique().tolist() == [1]
    assert view[:, 9:].unique().tolist() == [0]
    own = np.zeros((9, 11, 13), np.uint8)
    own[:5] = 1
    given = view_of(9, moving_mask=save("own.nii.gz", own))
    np.testing.assert_array_equal(given[0, :9], own)


@pytest.mark.parametrize("flipped", [False, True])
def test_physical_map_puts_a_slice_on_one_of_another_level(flipped):
    fixed_affine = make_affine((1.0, 1.5, 2.0), (0.3, -0.2, 0.5))
    moving_affine = make_affine((1.2, 0.8, -3.0 if flipped else 3.0), (0.3, -0.2, 0.5))
    normal = fixed_affine[:3, 2] / np.linalg.norm(fixed_affine[:3, 2])
    moving_affine[:3, 3] = fixed_affine[:3, 3] + 40 * normal
    images = [MetaTensor(torch.zeros(1, 9, 11), affine=torch.from_numpy(a)) for a in (fixed_affine, moving_affine)]
    there = physical_map(*images)
    np.testing.assert_allclose(there[:3, :3], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(there[:3, 3], 40 * normal, atol=1e-5)
    volume, start = MetaTensor(torch.zeros(1, 9, 11, 13)), torch.from_numpy(fixed_affine)
    assert torch.equal(physical_map(volume, volume), torch.eye(4, dtype=torch.float64))
    assert torch.equal(physical_map(volume, volume, start), start)


def test_masks_that_leave_nothing_together(save):
    image = save("i.nii.gz", smooth(VOLUME))
    left, right = np.zeros((2, *VOLUME), np.uint8)
    left[:4], right[5:] = 1, 1
    masks = {"fixed_mask": save("l.nii.gz", left), "moving_mask": save("r.nii.gz", right)}
    with pytest.raises(PairError, match=r"fixed_mask .*l.nii.gz and moving_mask .*r.nii.gz: on the fixed grid"):
        match(load(image, image, **masks))
    pair = match(load(image, image, fixed_mask=masks["fixed_mask"]))
    np.testing.assert_array_equal(pair.fixed_mask[0], left)


def test_the_mask_of_air_gives_way_to_one_that_was_given(save):
    values = smooth(VOLUME) - 50
    values[:3] = values.min()
    image = save("i.nii.gz", values)
    row = load(image, image)
    mask = with_mask_of_air(row).fixed.mask
    np.testing.assert_array_equal(mask.array[0], values > values.min())
    torch.testing.assert_close(mask.affine, row.fixed.image.affine)
    assert row.fixed.mask is None
    given = load(image, image, fixed_mask=np.ones(VOLUME))
    assert with_mask_of_air(given).fixed.mask is given.fixed.mask


@pytest.mark.parametrize("shape", [VOLUME, SLICE])
def test_fields_of_view_that_share_only_air(save, shape):
    empty = smooth(shape) + 1
    empty[: shape[0] - 2] = 0
    away = np.eye(4)
    away[0, 3] = 5
    fixed, moving = save("f.nii.gz", smooth(shape), away), save("m.nii.gz", empty[::-1], np.eye(4))
    with pytest.raises(PairError, match=rf"{moving}: all that lies on the fixed grid is 0, .* start with init"):
        match(load(fixed, moving))
    with pytest.raises(PairError, match="give another initial_transform"):
        match(load(fixed, moving), torch.eye(4, dtype=torch.float64))
