# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom import write_series
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.transforms import Compose
from scans import FLAT, SLICE, VOLUME, load, make_affine, refuse, smooth

from monai_nodeo.data.load import LoadPaird
from monai_nodeo.data.match import MatchGridd
from monai_nodeo.data.pair import PairError, root_cause, stored_grid
from monai_nodeo.files import ImageGrid

# LoadPaird: what comes out


@pytest.mark.parametrize(
    ("spatial_dims", "shape"), [(3, VOLUME), (3, (*VOLUME, 1)), (2, SLICE), (2, FLAT), (2, (*SLICE, 1))]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_voxels_affine_and_meta_come_as_stored(save, spatial_dims: int, shape: tuple[int, ...], dtype: type) -> None:
    data: np.ndarray = smooth(shape).astype(dtype)
    angles = (0.0, 0.0, 0.5) if shape == FLAT else (0.3, -0.2, 0.5)  # ITK keeps true 2D images in the x-y plane only
    affine = make_affine((2.0, 0.5, 3.0), angles, (10, -20, 30))
    path = save("f.nii.gz", data, affine)

    row = load(spatial_dims, path, path)

    image = row["fixed"]
    assert row["id"] == "pair"
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.array[0], data.reshape(shape[:spatial_dims]).astype(np.float32))
    np.testing.assert_allclose(image.affine, nib.nifti1.load(path).affine, atol=0)
    np.testing.assert_allclose(image.meta["original_affine"], affine, atol=1e-5)
    assert tuple(image.meta["spatial_shape"]) == shape[:3]
    assert image.meta["filename_or_obj"] == path


def test_scaled_and_big_endian_voxels_are_read_as_values(tmp_path) -> None:
    stored = np.arange(9 * 11 * 13).reshape(VOLUME)
    image = nib.Nifti1Image(stored.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "f.nii")
    fixed = load(3, tmp_path / "f.nii", tmp_path / "f.nii")["fixed"]
    np.testing.assert_array_equal(
        fixed.array[0], (stored * nib.nifti1.load(tmp_path / "f.nii").dataobj.slope - 3).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_labels(save, dtype: type) -> None:
    image = save("i.nii.gz", smooth(VOLUME))
    values = np.random.default_rng(0).integers(0, 36, VOLUME)
    labels = save("l.nii.gz", values.astype(dtype))
    row = load(3, image, image, fixed_label=labels, moving_label=labels)
    np.testing.assert_array_equal(row["fixed_label"].array[0], values)
    assert row["moving_label"].dtype == torch.float32
    assert row["moving_label"].meta["filename_or_obj"] == labels


def test_labels_of_none_are_no_labels(save) -> None:
    image = save("i.nii.gz", smooth(VOLUME))
    assert set(load(3, image, image, fixed_label=None, moving_label=None)) == {"fixed", "moving", "id"}


def test_meta_survives_the_loader_and_back(save) -> None:
    path = save("f.nii.gz", smooth(SLICE), make_affine((2, 3, 4), (0.1, 0.2, 0.3)))
    row = load(2, path, path)
    batch = next(iter(DataLoader([row], batch_size=1)))
    assert batch["fixed"].shape == (1, 1, 9, 11)
    (item,) = decollate_batch(batch)
    np.testing.assert_array_equal(np.asarray(item["fixed"].meta["original_affine"]), row["fixed"].affine)
    assert [int(n) for n in item["fixed"].meta["spatial_shape"]] == list(SLICE)
    assert item["fixed"].meta["filename_or_obj"] == path
    assert item["id"] == "pair"


def test_real_slices_and_volumes_load(oasis) -> None:
    row = load(2, oasis / "oasis2d/0031/slice_norm.nii.gz", oasis / "oasis2d/0060/slice_norm.nii.gz")
    assert row["fixed"].shape == (1, 160, 192)
    names = ("fixed_label", "moving_label")
    folders = [oasis / "oasis3d" / subject for subject in ("0001", "0002")]
    labels = {name: folder / "aligned_seg35.nii.gz" for name, folder in zip(names, folders, strict=True)}
    row = load(3, *[folder / "aligned_norm.nii.gz" for folder in folders], **labels)
    before = {name: image.as_tensor().clone() for name, image in row.items() if name != "id"}
    matched = MatchGridd()(row)
    assert row["fixed"].shape == (1, 160, 192, 224)
    assert all(torch.equal(matched[name].as_tensor(), image) for name, image in before.items())


# LoadPaird: what is refused


def test_missing_paths_and_files(save, tmp_path) -> None:
    good = save("good.nii.gz", smooth(VOLUME))
    assert "fixed: no path was given" in refuse(3, None, good)
    assert "moving: no path was given" in refuse(3, good, "")
    assert f"moving {tmp_path}/gone.nii.gz: there is no such file" in refuse(3, good, tmp_path / "gone.nii.gz")
    assert f"fixed {tmp_path}: the folder holds no DICOM files" in refuse(3, tmp_path, good)
    assert "a int is not a path" in refuse(3, 3, good)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.5, 0.98])
def test_truncated_files(save, tmp_path, suffix: str, kept: float) -> None:
    good = Path(save(f"good{suffix}", smooth(VOLUME)))
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(good.read_bytes()[: int(kept * good.stat().st_size)])
    message = refuse(3, good, bad)
    assert f"moving {bad}: " in message
    assert any(word in message for word in ("empty", "truncated", "damaged"))


def test_files_that_are_no_images(save, tmp_path) -> None:
    good = save("good.nii.gz", smooth(VOLUME))
    for name, content in (
        ("a.nii.gz", b"hello" * 100),
        ("a.nii", b"hello" * 100),
        ("a.txt", b"text"),
        ("a.png", b"\x89PNG"),
    ):
        (tmp_path / name).write_bytes(content)
        reader = "nibabel" if ".nii" in name else "SimpleITK"
        assert f"fixed {tmp_path / name}: not an image that {reader} reads" in refuse(3, tmp_path / name, good)


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "problem"),
    [
        (3, (*VOLUME, 4), r"shape (9, 11, 13, 4) is 4D"),
        (3, (*VOLUME, 1, 3), r"shape (9, 11, 13, 1, 3) is 5D"),
        (2, (*SLICE, 1, 2), r"shape (9, 11, 1, 1, 2) is 5D"),
        (3, SLICE, "shape (9, 11, 1) is a slice, but spatial_dims=3 registers volumes"),
        (3, FLAT, "give a volume, or slices in a run of their own (of the bundle: lay inference_2d.json over"),
        (2, VOLUME, "shape (9, 11, 13) is a volume, but spatial_dims=2 registers slices"),
        (2, VOLUME, "give a slice, or volumes in a run of their own (of the bundle: use inference.json without"),
        (2, (9, 1, 11), "move the thin axis to the end"),
        (2, (11,), "shape (11,) is no image"),
        (3, (9, 11, 7), "7 voxels along an axis of (9, 11, 7), expected at least 8"),
        (2, (7, 11, 1), "7 voxels along an axis of (7, 11), expected at least 8"),
    ],
)
def test_shapes_that_are_not_asked_for(save, spatial_dims: int, shape: tuple[int, ...], problem: str) -> None:
    bad = save("bad.nii.gz", smooth(shape))
    message = refuse(spatial_dims, bad, bad)
    assert f"fixed {bad}: " in message
    assert problem in message


@pytest.mark.parametrize("key", ["moving", "fixed_label", "moving_mask"])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ((VOLUME, SLICE), "shape (9, 11, 1) is a slice, but the fixed image is a volume"),
        ((VOLUME, FLAT), "shape (9, 11) is a slice, but the fixed image is a volume"),
        ((SLICE, VOLUME), "shape (9, 11, 13) is a volume, but the fixed image is a slice"),
    ],
)
def test_slices_and_volumes_do_not_mix(save, shapes: tuple[tuple[int, ...], ...], words: str, key: str) -> None:
    good, bad = save("good.nii.gz", smooth(shapes[0])), save("bad.nii.gz", smooth(shapes[1]))
    files = {"moving": good, "fixed_label": good, "moving_label": good, key: bad}
    message = refuse(3 if shapes[0] == VOLUME else 2, good, **files)
    assert message == f"{key} {bad}: {words}; give only volumes or only slices."


def test_a_scan_of_few_slices_gets_advice_of_its_own(save) -> None:
    few, small = save("few.nii.gz", smooth((9, 11, 3))), save("small.nii.gz", smooth((7, 11, 1)))
    message = refuse(3, few, few)
    assert "3 voxels along an axis of (9, 11, 3), expected at least 8; crop less" in message
    assert "if these are all the slices of a scan, give one with more or register single slices" in message
    assert refuse(2, small, small).endswith("crop less or resample to smaller voxels.")


def test_min_size_can_be_chosen(save) -> None:
    path = save("f.nii.gz", smooth((9, 11, 7)))
    row = LoadPaird(3, min_size=7)({"fixed": path, "moving": path})
    assert row["fixed"].shape == (1, 9, 11, 7)
    with pytest.raises(ValueError, match="spatial_dims is 4, expected 2 or 3"):
        LoadPaird(4)


def test_colour_and_complex_voxels(save) -> None:
    rgb = np.zeros(VOLUME, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour = save("rgb.nii.gz", rgb)
    assert f"fixed {colour}: shape (9, 11, 13, 1, 3) is 5D, a series or an image with channels" in refuse(
        3, colour, colour
    )
    complex_ = save("complex.nii.gz", smooth(VOLUME).astype(np.complex64))
    assert f"fixed {complex_}: the voxels are complex" in refuse(3, complex_, complex_)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_finite(save, value: float) -> None:
    good = save("good.nii.gz", smooth(VOLUME))
    data = smooth(VOLUME).astype(np.float64)
    data[1:3, 2, 3] = value
    bad = save("bad.nii.gz", data)
    assert f"moving {bad}: 2 of 1287 voxels are NaN or infinite" in refuse(3, good, bad)
    assert f"moving_label {bad}: 2 of 1287" in refuse(3, good, good, fixed_label=good, moving_label=bad)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_images(save, value: int) -> None:
    good, bad = save("good.nii.gz", smooth(VOLUME)), save("bad.nii.gz", np.full(VOLUME, value, np.uint8))
    assert f"fixed {bad}: every voxel is {value}" in refuse(3, bad, good)


@pytest.mark.parametrize("column", [(0, 0, 0), (1, 2, 0), (np.nan, 0, 1)])
def test_affines_without_an_inverse(tmp_path, column: tuple[float, ...]) -> None:
    affine = np.eye(4)
    affine[:3, 1] = (0.5, 1, 0)
    affine[:3, 2] = column
    image = nib.Nifti1Image(smooth(VOLUME), np.eye(4))
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):  # nibabel itself would not write such an affine
        image.header[name] = affine[row]
    image.header["sform_code"] = 1
    with open(tmp_path / "bad.nii", "wb") as file:
        header = image.header.copy()
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        file.write(header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes("F"))
    assert f"fixed {tmp_path / 'bad.nii'}: the affine" in refuse(3, tmp_path / "bad.nii", tmp_path / "bad.nii")


@pytest.mark.parametrize("given", ["fixed_label", "moving_label"])
def test_one_label_map_alone(save, given: str) -> None:
    image = save("i.nii.gz", smooth(VOLUME))
    (missing,) = {"fixed_label", "moving_label"} - {given}
    assert f"{given} {image}: labels came without {missing}" in refuse(3, image, image, **{given: image})


def test_labels_that_are_no_labels(save) -> None:
    image = save("i.nii.gz", smooth(VOLUME))
    good = save("good.nii.gz", np.ones(VOLUME, np.uint8))
    half = np.ones(VOLUME, np.float32)
    half[2, 3, 4:6] = 0.5
    bad = save("half.nii.gz", half)
    assert f"moving_label {bad}: 2 voxels are no whole numbers" in refuse(
        3, image, image, fixed_label=good, moving_label=bad
    )
    large = save("large.nii.gz", np.full(VOLUME, 2**24 + 1, np.int32))
    assert "renumber the labels" in refuse(3, image, image, fixed_label=good, moving_label=large)


def test_labels_on_another_grid_than_their_image(save) -> None:
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4))
    image = save("i.nii.gz", smooth(VOLUME), affine)
    good = save("good.nii.gz", np.ones(VOLUME, np.uint8), affine)
    turned = save("turned.nii.gz", np.ones((11, 9, 13), np.uint8), affine)
    message = refuse(3, image, image, fixed_label=turned, moving_label=good)
    assert f"fixed_label {turned}: shape (11, 9, 13) differs from (9, 11, 13) of its image {image}" in message
    shifted = affine.copy()
    shifted[:3, 3] += (0, 0.5, 0)
    moved = save("moved.nii.gz", np.ones(VOLUME, np.uint8), shifted)
    message = refuse(3, image, image, fixed_label=good, moving_label=moved)
    assert f"moving_label {moved}: its affine puts a corner 0.5 mm from that of its image" in message


def test_root_cause_sees_through_composes(save) -> None:
    good = save("good.nii.gz", smooth(VOLUME))
    with pytest.raises(RuntimeError) as info:
        Compose([Compose([LoadPaird(3), MatchGridd()])])({"fixed": good, "moving": "gone.nii.gz"})
    cause = root_cause(info.value)
    assert isinstance(cause, PairError)
    assert "gone.nii.gz" in str(cause)
    other = KeyError("x")
    assert root_cause(other) is other


# Masks


def test_masks_are_ones_and_zeros_on_the_grid_of_their_image(save) -> None:
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4))
    fixed, moving = save("f.nii.gz", smooth(VOLUME), affine), save("m.nii.gz", smooth((11, 9, 13), 1), affine)
    values = np.zeros((11, 9, 13), np.float32)
    values[2:5, 3:7], values[7] = 0.4, 255
    row = load(3, fixed, moving, moving_mask=save("mask.nii.gz", values, affine), fixed_mask=None)
    np.testing.assert_array_equal(row["moving_mask"].array[0], values > 0)
    assert row["moving_mask"].dtype == torch.float32
    assert "fixed_mask" not in row


def test_masks_that_are_no_masks(save) -> None:
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4))
    image = save("i.nii.gz", smooth(VOLUME), affine)
    empty = save("empty.nii.gz", np.zeros(VOLUME, np.uint8), affine)
    assert f"fixed_mask {empty}: the mask excludes everything" in refuse(3, image, image, fixed_mask=empty)
    other = save("other.nii.gz", np.ones((9, 11, 12), np.uint8), affine)
    message = refuse(3, image, image, moving_mask=other)
    assert f"moving_mask {other}: shape (9, 11, 12) differs from (9, 11, 13) of its image {image}" in message
    elsewhere = save("elsewhere.nii.gz", np.ones(VOLUME, np.uint8))
    assert "its affine puts a corner" in refuse(3, image, image, moving_mask=elsewhere)


# Other formats


@pytest.mark.parametrize("name", ["f.nrrd", "f.mha"])
def test_any_format_gives_the_same_row(save, tmp_path, name: str) -> None:
    path = save("f.nii.gz", smooth(VOLUME), make_affine((1, 2, 3), (0.2, 0.3, 0.4), (5, 6, 7)))
    sitk.WriteImage(sitk.ReadImage(path), str(tmp_path / name))
    row = load(3, path, tmp_path / name)
    assert torch.equal(row["moving"].as_tensor(), row["fixed"].as_tensor())
    torch.testing.assert_close(row["moving"].affine, row["fixed"].affine, atol=1e-5, rtol=0)
    grids = [stored_grid(row[key]) for key in ("fixed", "moving")]
    assert grids[0].shape == grids[1].shape == VOLUME


def test_a_dicom_series_and_a_picture_are_read(save, tmp_path) -> None:
    affine = make_affine((1, 2, 3), (0.2, 0.3, 0.4), (5, 6, 7))
    volume = smooth(VOLUME).astype(np.int16)
    write_series(tmp_path / "scan", volume, affine, number=4)
    row = load(3, save("f.nii.gz", volume, affine), f"{tmp_path / 'scan'}#4")
    assert torch.equal(row["moving"].as_tensor(), row["fixed"].as_tensor())
    torch.testing.assert_close(row["moving"].affine, row["fixed"].affine, atol=1e-4, rtol=0)
    assert row["moving"].meta["original_dtype"] == "int16"
    sitk.WriteImage(sitk.GetImageFromArray(smooth(FLAT).astype(np.uint8).T), str(tmp_path / "a.png"))
    row = load(2, tmp_path / "a.png", tmp_path / "a.png")
    assert stored_grid(row["fixed"]).shape == FLAT


def test_the_stored_grid_survives_the_loader(save) -> None:
    image = nib.Nifti1Image(smooth(SLICE), make_affine((2, 3, 4), (0.1, 0.2, 0.3)))
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 1)
    nib.save(image, path := save("f.nii.gz", smooth(SLICE)))
    (item,) = decollate_batch(next(iter(DataLoader([load(2, path, path)], batch_size=1))))
    grid, expected = stored_grid(item["fixed"]), ImageGrid.from_file(path)
    np.testing.assert_array_equal(grid.affine, expected.affine)
    assert (grid.shape, grid.sform_code, grid.qform_code) == (SLICE, 4, 1)
