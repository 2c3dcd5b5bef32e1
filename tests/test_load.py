# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, MetaTensor, decollate_batch
from scans import FLAT, SLICE, VOLUME, load, make_affine, refuse, smooth

from monai_nodeo.data import PairError, as_image, load_pair
from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.data.pair import stored_grid
from monai_nodeo.files import ImageGrid

OBLIQUE = make_affine((2.0, 0.5, 3.0), (0.3, -0.2, 0.5), (10, -20, 30))
IN_PLANE = make_affine((2.0, 0.5, 1.0), (0, 0, 0.5), (10, -20, 0))  # ITK keeps true 2D images in the x-y plane only
CORONAL = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -0.5], [0, -1, 0, 96], [0, 0, 0, 1]])


@pytest.mark.parametrize("shape", [VOLUME, (*VOLUME, 1), SLICE, FLAT, (*SLICE, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_voxels_affine_and_meta_come_as_stored(save, shape, dtype):
    data: np.ndarray = smooth(shape).astype(dtype)
    affine = IN_PLANE if shape == FLAT else OBLIQUE
    path = save("f.nii.gz", data, affine)
    pair = load(path, path)
    image = pair.fixed.image
    assert (pair.id, pair.spatial_dims) == ("pair", 3 if shape[:3] == VOLUME else 2)
    assert pair.sources == (("fixed", path), ("moving", path))
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.array[0], data.reshape(shape[: pair.spatial_dims]).astype(np.float32))
    np.testing.assert_allclose(image.affine, nib.nifti1.load(path).affine, atol=0)
    np.testing.assert_allclose(image.meta["original_affine"], affine, atol=1e-5)
    assert tuple(image.meta["spatial_shape"]) == shape[:3]
    assert image.meta["filename_or_obj"] == path
    assert image.meta["original_dtype"] == np.dtype(dtype).name


@pytest.mark.parametrize(("shape", "affine"), [(VOLUME, OBLIQUE), (SLICE, OBLIQUE), (SLICE, CORONAL), (FLAT, IN_PLANE)])
def test_every_form_of_an_image_is_the_same_image(save, shape, affine):
    path = save("f.nii.gz", smooth(shape), affine)
    expected = as_image(path)
    values = expected.as_tensor()
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64))
    placed: dict[str, Any] = {
        "Path": Path(path),
        "nibabel": nib.nifti1.load(path),
        "SimpleITK": sitk.ReadImage(path),
        "MetaTensor": MetaTensor(values.double(), affine=expected.affine),
        "MetaTensor in LPS": MetaTensor(values, affine=lps @ expected.affine, meta={"space": "LPS"}),
        "image itself": expected,
    }
    for form, image in placed.items():
        found = as_image(image)
        assert torch.equal(found.as_tensor(), values), form
        torch.testing.assert_close(found.affine, expected.affine, rtol=0, atol=1e-5, msg=form)
        assert stored_grid(found).spatial_shape == ImageGrid.from_file(path).spatial_shape
    for image in (
        values,
        values[0].numpy(),
        values[0].numpy()[..., None],
        values[0].numpy().astype(">f8"),
        values.clone().requires_grad_(),
    ):
        found = as_image(image)
        assert torch.equal(found.as_tensor(), values)
        assert torch.equal(found.affine, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_tensors_of_any_real_type_are_images(dtype):
    values = torch.arange(9 * 11).reshape(1, 9, 11).to(dtype)
    assert torch.equal(as_image(values).as_tensor(), values.float())


def test_channels_come_first(save):
    values = torch.stack([torch.from_numpy(smooth(VOLUME, seed)) for seed in (1, 2)])
    assert torch.equal(as_image(values).as_tensor(), values)
    assert torch.equal(load(values, values).moving.image.as_tensor(), values)
    one = save("one.nii.gz", smooth(VOLUME))
    message = refuse(one, values)
    assert message == f"moving has 2 channels and fixed {one} has 1; give the same ones in the same order."
    assert "fixed_mask: 2 channels, expected one" in refuse(one, one, fixed_mask=values)


def test_scaled_and_big_endian_voxels_are_read_as_values(tmp_path):
    stored = np.arange(9 * 11 * 13).reshape(VOLUME)
    image = nib.Nifti1Image(stored.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "f.nii")
    fixed = as_image(tmp_path / "f.nii")
    np.testing.assert_array_equal(
        fixed.array[0], (stored * nib.nifti1.load(tmp_path / "f.nii").dataobj.slope - 3).astype(np.float32)
    )
    assert fixed.meta["original_dtype"] == "float32"


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_labels(save, dtype):
    image = save("i.nii.gz", smooth(VOLUME))
    values = np.random.default_rng(0).integers(0, 36, VOLUME)
    labels = save("l.nii.gz", values.astype(dtype))
    pair = load(image, image, fixed_label=labels, moving_label=labels)
    np.testing.assert_array_equal(pair.fixed.label.array[0], values)
    assert pair.moving.label.dtype == torch.float32
    assert pair.moving.label.meta["filename_or_obj"] == labels


def test_missing_paths_and_files(save, tmp_path):
    good = save("good.nii.gz", smooth(VOLUME))
    assert "fixed: no path was given" in refuse(None, good)
    assert "moving: no path was given" in refuse(good, "")
    assert f"fixed {tmp_path}: the folder holds no DICOM files" in refuse(tmp_path, good)


@pytest.mark.parametrize("key", [key for key in PATH_KEYS if key != "fixed"])
def test_a_mistyped_path_is_told_before_anything_is_read(tmp_path, key):
    (tmp_path / "empty.nii.gz").touch()  # reading it would fail first
    row = dict.fromkeys(PATH_KEYS, tmp_path / "empty.nii.gz") | {key: tmp_path / "gone.nii.gz"}
    assert f"{key} {tmp_path}/gone.nii.gz: there is no such file; check the path" in refuse(**row)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: np.where(x == x.max(), np.nan, x), "1 of 1287 voxels are NaN or infinite in float32"),
        (lambda x: torch.from_numpy(np.where(x == x.max(), np.inf, x))[None], "1 of 1287 voxels are NaN or infinite"),
        (lambda x: torch.from_numpy(x)[None, None], "a tensor of shape (1, 1, 9, 11, 13); expected channels first and"),
        (lambda x: torch.from_numpy(x)[0], "a tensor of shape (11, 13); expected channels first"),
        (lambda x: torch.from_numpy(x)[None, :0], "a tensor of shape (1, 0, 11, 13)"),
        (lambda x: x[None], "shape (1, 9, 11, 13) is 4D"),
        (lambda x: x[0, 0], "shape (13,) is no image"),
        (lambda x: x[:0], "shape (0, 11, 13) is no image"),
        (lambda x: x * 1j, "the voxels are complex64; expected real numbers"),
        (lambda x: sitk.GetImageFromArray(x.astype(np.complex64)), "the voxels are complex64; expected real numbers"),
        (
            lambda x: nib.Nifti1Image(x.astype(np.complex64), np.eye(4)),
            "the voxels are complex64; expected real numbers",
        ),
        (lambda x: x.astype(str), "the voxels are <U32; expected real numbers"),
        (lambda x: nib.Nifti1Image(x, None), "the image has no affine"),
        (lambda x: MetaTensor(x[None], affine=torch.zeros(4, 4)), "is singular or not finite"),
        (lambda x: x.tolist(), "a list is no image; give a path, an array (X, Y, Z), a tensor (C, X, Y, Z) or"),
        (lambda x: 3, "a int is no image"),
    ],
)
def test_what_is_no_image_in_memory(make, words):
    message = refuse(make(smooth(VOLUME)), smooth(VOLUME))
    assert message.startswith("fixed: ")
    assert words in message


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.5, 0.98])
def test_truncated_files(save, tmp_path, suffix, kept):
    good = Path(save(f"good{suffix}", smooth(VOLUME)))
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(good.read_bytes()[: int(kept * good.stat().st_size)])
    message = refuse(good, bad)
    assert f"moving {bad}: " in message
    assert any(word in message for word in ("empty", "truncated", "damaged"))


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "problem"),
    [
        (3, (*VOLUME, 4), r"shape (9, 11, 13, 4) is 4D"),
        (3, (*VOLUME, 2, 3), r"shape (9, 11, 13, 2, 3) is 5D"),
        (3, SLICE, "shape (9, 11, 1) is a slice, and this run registers volumes (spatial_dims=3)"),
        (3, FLAT, "give a volume, or slices in a run of their own."),
        (2, VOLUME, "shape (9, 11, 13) is a volume, and this run registers slices (spatial_dims=2)"),
        (2, VOLUME, "give a slice, or volumes in a run of their own."),
        (2, (9, 1, 11), "move the thin axis to the end"),
        (2, (11,), "shape (11,) is no image"),
        (3, (9, 11, 7), "7 voxels along an axis of (9, 11, 7), expected at least 8"),
        (3, (9, 11, 3), "if these are all the slices of a scan, give one with more or register single slices"),
        (2, (7, 11, 1), "7 voxels along an axis of (7, 11), expected at least 8"),
    ],
)
def test_shapes_that_are_not_asked_for(save, spatial_dims, shape, problem):
    bad = save("bad.nii.gz", smooth(shape))
    message = refuse(bad, bad, spatial_dims)
    assert f"fixed {bad}: " in message
    assert problem in message


@pytest.mark.parametrize("key", ["moving", "fixed_label", "moving_mask"])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ((VOLUME, SLICE), "shape (9, 11, 1) is a slice, and this run registers volumes"),
        ((VOLUME, FLAT), "shape (9, 11) is a slice, and this run registers volumes"),
        ((SLICE, VOLUME), "shape (9, 11, 13) is a volume, and this run registers slices"),
    ],
)
def test_slices_and_volumes_do_not_mix(save, shapes, words, key):
    good, bad = save("good.nii.gz", smooth(shapes[0])), save("bad.nii.gz", smooth(shapes[1]))
    files = {"moving": good, "fixed_label": good, "moving_label": good, key: bad}
    message = refuse(good, **files)
    assert message.startswith(f"{key} {bad}: {words} (spatial_dims=")


def test_min_size_can_be_chosen(save):
    path = save("f.nii.gz", smooth((9, 11, 7)))
    assert load_pair({"fixed": path, "moving": path}, min_size=7).fixed.image.shape == (1, 9, 11, 7)
    with pytest.raises(PairError, match="spatial_dims is 4, expected 2 for slices or 3 for volumes"):
        load_pair({"fixed": path, "moving": path}, spatial_dims=4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_finite(save, value):
    good = save("good.nii.gz", smooth(VOLUME))
    data = smooth(VOLUME).astype(np.float64)
    data[1:3, 2, 3] = value
    bad = save("bad.nii.gz", data)
    assert f"moving {bad}: 2 of 1287 voxels are NaN or infinite" in refuse(good, bad)
    assert f"moving_label {bad}: 2 of 1287" in refuse(good, good, fixed_label=good, moving_label=bad)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_images(save, value):
    good, bad = save("good.nii.gz", smooth(VOLUME)), save("bad.nii.gz", np.full(VOLUME, value, np.uint8))
    assert f"fixed {bad}: every voxel is {value}" in refuse(bad, good)


@pytest.mark.parametrize("given", ["fixed_label", "moving_label"])
def test_one_label_map_alone(save, given):
    image = save("i.nii.gz", smooth(VOLUME))
    (missing,) = {"fixed_label", "moving_label"} - {given}
    assert f"{given} {image}: labels came without {missing}" in refuse(image, image, **{given: image})


def test_labels_that_are_no_labels(save):
    image = save("i.nii.gz", smooth(VOLUME))
    good = save("good.nii.gz", np.ones(VOLUME, np.uint8))
    half = np.ones(VOLUME, np.float32)
    half[2, 3, 4:6] = 0.5
    bad = save("half.nii.gz", half)
    assert f"moving_label {bad}: 2 voxels are no whole numbers" in refuse(
        image, image, fixed_label=good, moving_label=bad
    )
    large = save("large.nii.gz", np.full(VOLUME, 2**24 + 1, np.int32))
    assert "renumber the labels" in refuse(image, image, fixed_label=good, moving_label=large)


@pytest.mark.parametrize("key", ["fixed_label", "moving_label", "fixed_mask", "moving_mask"])
def test_labels_and_masks_on_another_grid_than_their_image(save, key):
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4))
    image, good = save("i.nii.gz", smooth(VOLUME), affine), save("good.nii.gz", np.ones(VOLUME, np.uint8), affine)
    turned = save("turned.nii.gz", np.ones((11, 9, 13), np.uint8), affine)
    shifted = affine.copy()
    shifted[:3, 3] += (0, 0.5, 0)
    moved = save("moved.nii.gz", np.ones(VOLUME, np.uint8), shifted)
    labels = {"fixed_label": good, "moving_label": good}
    message = refuse(image, image, **labels | {key: turned})
    assert f"{key} {turned}: shape (11, 9, 13) differs from (9, 11, 13) of its image {image}" in message
    message = refuse(image, image, **labels | {key: moved})
    assert f"{key} {moved}: its affine puts a corner 0.5 mm from that of its image" in message


def test_a_mask_of_nothing(save):
    image, empty = save("i.nii.gz", smooth(VOLUME)), save("empty.nii.gz", np.zeros(VOLUME, np.uint8))
    assert f"fixed_mask {empty}: the mask excludes everything" in refuse(image, image, fixed_mask=empty)


def test_masks_are_ones_and_zeros_on_the_grid_of_their_image(save):
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4))
    fixed, moving = save("f.nii.gz", smooth(VOLUME), affine), save("m.nii.gz", smooth((11, 9, 13), 1), affine)
    values = np.zeros((11, 9, 13), np.float32)
    values[2:5, 3:7], values[7] = 0.4, 255
    pair = load(fixed, moving, moving_mask=save("mask.nii.gz", values, affine), fixed_mask=None)
    np.testing.assert_array_equal(pair.moving.mask.array[0], values > 0)
    assert pair.moving.mask.dtype == torch.float32
    assert pair.fixed.mask is None


def test_plain_labels_and_masks_lie_on_the_grid_of_their_image(save):
    image = save("i.nii.gz", smooth(VOLUME), OBLIQUE)
    half = np.zeros(VOLUME, np.uint8)
    half[:4] = 3
    pair = load(image, image, fixed_label=half, moving_label=torch.from_numpy(half)[None], fixed_mask=half)
    for other in (pair.fixed.label, pair.moving.label, pair.fixed.mask):
        torch.testing.assert_close(other.affine, pair.fixed.image.affine, rtol=0, atol=0)
    assert "moving: a plain array or tensor of shape (9, 11, 8)" in refuse(image, smooth(VOLUME)[..., :8])
    assert "moving_mask: a plain array or tensor of shape (11, 9, 13) has no place of its own" in refuse(
        image, image, moving_mask=half.swapaxes(0, 1)
    )


@pytest.mark.parametrize(("shape", "affine"), [(VOLUME, OBLIQUE), (SLICE, CORONAL), (FLAT, IN_PLANE)])
@pytest.mark.parametrize("plain", [lambda x: x, lambda x: torch.from_numpy(x)[None]], ids=["array", "tensor"])
def test_a_plain_moving_image_lies_on_the_fixed_grid(save, shape, affine, plain):
    path, values = save("f.nii.gz", smooth(shape), affine), smooth(shape, 1)
    found, expected = load(path, plain(values)), load(path, save("m.nii.gz", values, affine))
    assert torch.equal(found.moving.image.as_tensor(), expected.moving.image.as_tensor())
    for a, b in zip(*(vars(stored_grid(pair.moving.image)).values() for pair in (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_stored_grid_survives_a_data_loader(save):
    image = nib.Nifti1Image(smooth(SLICE), OBLIQUE)
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 1)
    nib.save(image, path := save("f.nii.gz", smooth(SLICE)))
    (item,) = decollate_batch(next(iter(DataLoader([{"fixed": as_image(path)}], batch_size=1))))
    grid, expected = stored_grid(item["fixed"]), ImageGrid.from_file(path)
    np.testing.assert_array_equal(grid.affine, expected.affine)
    assert (grid.shape, grid.sform_code, grid.qform_code) == (SLICE, 4, 1)
    assert item["fixed"].meta["filename_or_obj"] == path
