# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.transforms import Compose
from scipy import ndimage

from monai_nodeo.pair_transforms import LoadPaird, MatchGridd, PairError, root_cause

VOLUME, SLICE, FLAT = (9, 11, 13), (9, 11, 1), (9, 11)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth random image with values in [0, 100]."""
    image = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=shape), [1.5 if n > 1 else 0 for n in shape]
    )
    return (100 * (image - image.min()) / np.ptp(image)).astype(np.float32)


def rotation(angle: float, axis: int) -> np.ndarray:
    i, j = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def make_affine(
    spacing: tuple[float, float, float],
    angles: tuple[float, float, float] = (0, 0, 0),
    origin: tuple[float, ...] = (0, 0, 0),
) -> np.ndarray:
    affine = np.eye(4)
    turn = rotation(angles[0], 0) @ rotation(angles[1], 1) @ rotation(angles[2], 2)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def centred(affine: np.ndarray, shape: tuple[int, ...], centre: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """The affine moved so that the middle of the grid lies at the centre."""
    affine = affine.copy()
    middle = np.array([(n - 1) / 2 for n in (*shape, 1)[:3]])
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ middle
    return affine


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    def _save(name: str, data: np.ndarray, affine: np.ndarray | None = None) -> str:
        nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), tmp_path / name)
        return str(tmp_path / name)

    return _save


def load(spatial_dims: int, fixed: Any, moving: Any, **labels: Any) -> dict[str, Any]:
    return LoadPaird(spatial_dims)({"fixed": fixed, "moving": moving, "id": "pair", **labels})


def refuse(spatial_dims: int, fixed: Any, moving: Any, **labels: Any) -> str:
    with pytest.raises(PairError) as info:
        load(spatial_dims, fixed, moving, **labels)
    return str(info.value)


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
    assert f"fixed {tmp_path}: not a file" in refuse(3, tmp_path, good)
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
        assert f"fixed {tmp_path / name}: not an image that nibabel reads" in refuse(3, tmp_path / name, good)
    surface = nib.gifti.GiftiImage()
    nib.save(surface, tmp_path / "a.gii")
    assert "a GiftiImage has no voxel grid" in refuse(3, tmp_path / "a.gii", good)


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "problem"),
    [
        (3, (*VOLUME, 4), r"shape (9, 11, 13, 4) is 4D"),
        (3, (*VOLUME, 1, 3), r"shape (9, 11, 13, 1, 3) is 5D"),
        (2, (*SLICE, 1, 2), r"shape (9, 11, 1, 1, 2) is 5D"),
        (3, SLICE, "shape (9, 11, 1) is a slice, but spatial_dims=3 registers volumes"),
        (3, FLAT, "lay inference_2d.json over inference.json"),
        (2, VOLUME, "shape (9, 11, 13) is a volume, but spatial_dims=2 registers slices"),
        (2, VOLUME, "use inference.json without inference_2d.json"),
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


def test_min_size_can_be_chosen(save) -> None:
    path = save("f.nii.gz", smooth((9, 11, 7)))
    row = LoadPaird(3, min_size=7)({"fixed": path, "moving": path})
    assert row["fixed"].shape == (1, 9, 11, 7)
    with pytest.raises(ValueError, match="spatial_dims is 4, expected 2 or 3"):
        LoadPaird(4)


def test_colour_and_complex_voxels(save) -> None:
    rgb = np.zeros(VOLUME, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour = save("rgb.nii.gz", rgb)
    assert f"fixed {colour}: the voxels are RGB" in refuse(3, colour, colour)
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


# MatchGridd


def itk_resample(moving: str, fixed: str, nearest: bool = False) -> np.ndarray:
    """(*spatial) of the moving file on the fixed file's grid, by SimpleITK from the headers alone."""
    interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in (moving, fixed)]
    return sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], sitk.Transform(), interpolator, -1e4)).T


OBLIQUE = [
    ((1, 1, 1), (0, 0, 0), (1.5, 0.8, 1.2), (0, 0, 0)),
    ((1.0, 1.5, 2.0), (0.3, -0.2, 0.5), (1.4, 1.1, 1.7), (-0.1, 0.4, 0.2)),
    ((-1.0, 1.5, 2.0), (0.3, -0.2, 1.5), (1.4, -1.1, -1.7), (1.1, 0.4, 0.2)),
]


@pytest.mark.parametrize(("fixed_spacing", "fixed_angles", "moving_spacing", "moving_angles"), OBLIQUE)
def test_volumes_are_resampled_as_by_itk(save, fixed_spacing, fixed_angles, moving_spacing, moving_angles) -> None:
    fixed_shape, moving_shape = (15, 17, 19), (21, 26, 23)
    fixed_affine = centred(make_affine(fixed_spacing, fixed_angles), fixed_shape, (40, -30, 20))
    moving_affine = centred(make_affine(moving_spacing, moving_angles), moving_shape, (41, -29, 20.5))
    fixed = save("f.nii.gz", smooth(fixed_shape, 1), fixed_affine)
    moving = save("m.nii.gz", smooth(moving_shape, 2), moving_affine)
    labels = {
        "fixed_label": save("fl.nii.gz", np.ones(fixed_shape, np.uint8), fixed_affine),
        "moving_label": save("ml.nii.gz", (smooth(moving_shape, 3) // 10).astype(np.uint8), moving_affine),
    }

    pair = MatchGridd()(load(3, fixed, moving, **labels))

    expected = itk_resample(moving, fixed)
    # ITK's field of view has half a voxel more, where it repeats the border: one voxel in, both interpolate.
    index = np.indices(fixed_shape).reshape(3, -1)
    position = np.linalg.inv(moving_affine) @ fixed_affine @ np.vstack([index, np.ones(index.shape[1])])
    limit = np.array(moving_shape)[:, None] - 1
    inside = ((position[:3] > 0.01) & (position[:3] < limit - 0.01)).all(0).reshape(fixed_shape)
    assert inside.mean() > 0.5
    assert pair["moving"].shape == (1, *fixed_shape)
    np.testing.assert_allclose(pair["moving"].array[0][inside], expected[inside], atol=1e-3)  # of a range of 100
    differing = pair["moving_label"].array[0] != itk_resample(labels["moving_label"], fixed, nearest=True)
    assert differing[inside].mean() < 0.002  # halfway cases may round either way
    torch.testing.assert_close(pair["moving"].affine, pair["fixed"].affine, rtol=0, atol=0)
    np.testing.assert_allclose(pair["moving"].meta["original_affine"], moving_affine, atol=1e-4)
    assert pair["moving"].meta["filename_or_obj"] == moving
    assert tuple(pair["moving"].meta["spatial_shape"]) == moving_shape


CORONAL = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("level", [0.0, 7.5])
@pytest.mark.parametrize("base", [np.eye(4), CORONAL, make_affine((1, 1, 1), (0.4, -0.7, 0.3))])
def test_slices_are_resampled_in_their_plane(save, base: np.ndarray, level: float) -> None:
    fixed_shape, moving_shape = (15, 17, 1), (24, 21, 1)
    fixed_affine = centred(base @ make_affine((1.0, 1.5, 2.0)), fixed_shape, (5, 6, 7))
    moving_affine = centred(base @ make_affine((1.2, 1.4, 5.0), (0, 0, 0.3)), moving_shape, (5, 6, 7))
    values = smooth(moving_shape, 2)
    fixed = save("f.nii.gz", smooth(fixed_shape, 1), fixed_affine)
    same_level = save("same_level.nii.gz", values, moving_affine)
    moving_affine[:3, 3] += level * base[:3, 2]
    moving = save("m.nii.gz", values, moving_affine)

    pair = MatchGridd()(load(2, fixed, moving))

    # ITK knows no levels to ignore: it takes the slice where the planes coincide, thick enough to be interpolated.
    expected = itk_resample(same_level, fixed)[..., 0]
    inside = expected > -1
    assert inside.mean() > 0.9
    np.testing.assert_allclose(pair["moving"].array[0][inside], expected[inside], atol=2e-3)


def test_a_true_2d_image_matches_a_slice_in_a_3d_header(save) -> None:
    data = smooth(FLAT)
    fixed, moving = save("f.nii.gz", data[..., None]), save("m.nii.gz", data)
    pair = MatchGridd()(load(2, fixed, moving))
    assert torch.equal(pair["moving"].as_tensor(), pair["fixed"].as_tensor())


@pytest.mark.parametrize(("spatial_dims", "shape"), [(3, VOLUME), (2, SLICE)])
def test_a_slightly_rounded_grid_keeps_its_voxels(save, spatial_dims: int, shape: tuple[int, ...]) -> None:
    affine = make_affine((2, 0.5, 3), (0.3, 0.2, 0.1))
    rounded = affine.copy()
    rounded[:3, 3] += 0.002
    row = load(spatial_dims, save("f.nii.gz", smooth(shape, 1), affine), save("m.nii.gz", smooth(shape, 2), rounded))
    before = row["moving"].as_tensor().clone()
    pair = MatchGridd()(row)
    assert torch.equal(pair["moving"].as_tensor(), before)
    torch.testing.assert_close(pair["moving"].affine, row["fixed"].affine, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_small_difference_of_the_grids_is_not_lost(save, scale: float) -> None:
    """MONAI's SpatialResample takes these two for equal: a matrix that differs by 9e-4, or voxels of micrometres."""
    shape = (200, 9, 11)
    ramp = np.broadcast_to(np.arange(200.0, dtype=np.float32)[:, None, None], shape)
    fixed = save("f.nii.gz", ramp, make_affine((scale, scale, scale)))
    moving = save("m.nii.gz", ramp, make_affine((scale * 1.0009, scale, scale)))
    pair = MatchGridd()(load(3, fixed, moving))
    np.testing.assert_allclose(pair["moving"].array[0, :, 4, 5], np.arange(200) / 1.0009, atol=1e-3)


def test_outside_the_field_of_view_is_background(save) -> None:
    image, labels = smooth(VOLUME) - 1000, np.full(VOLUME, 5, np.uint8)
    far = make_affine((1, 1, 1), origin=(5, 0, 0))
    names = [save("f.nii.gz", image), save("m.nii.gz", image, far)]
    row = load(3, *names, fixed_label=save("fl.nii.gz", labels), moving_label=save("ml.nii.gz", labels, far))
    pair = MatchGridd()(row)
    assert pair["moving"][0, :5].unique().tolist() == [image.min()]
    torch.testing.assert_close(pair["moving"].as_tensor()[:, 5:], row["moving"].as_tensor()[:, :4])
    assert pair["moving_label"][0, :5].unique().tolist() == [0]
    assert pair["moving_label"][0, 5:].unique().tolist() == [5]


@pytest.mark.parametrize(("spatial_dims", "shape"), [(3, VOLUME), (2, SLICE)])
def test_images_that_do_not_overlap(save, spatial_dims: int, shape: tuple[int, ...]) -> None:
    fixed = save("f.nii.gz", smooth(shape))
    moving = save("m.nii.gz", smooth(shape), make_affine((1, 1, 1), origin=(0, 50, 0)))
    with pytest.raises(PairError) as info:
        MatchGridd()(load(spatial_dims, fixed, moving))
    assert f"fixed {fixed} (x -0.5 to 8.5, y -0.5 to 10.5, z " in str(info.value)
    assert f"moving {moving} (x -0.5 to 8.5, y 49.5 to 60.5, z " in str(info.value)
    assert "do not overlap" in str(info.value)


def test_a_small_overlap_is_logged(save, caplog) -> None:
    fixed = save("f.nii.gz", smooth(VOLUME))
    moving = save("m.nii.gz", smooth(VOLUME), make_affine((1, 1, 1), origin=(8, 0, 0)))
    with caplog.at_level(logging.WARNING):
        MatchGridd()(load(3, fixed, moving))
    assert "covers 11.1 % of the fixed grid" in caplog.text


def test_slices_in_different_planes(save) -> None:
    fixed, moving = save("f.nii.gz", smooth(SLICE)), save("m.nii.gz", smooth(SLICE), CORONAL)
    with pytest.raises(
        PairError, match=r"m.nii.gz: its plane \(normal .*\) is not parallel to that of fixed .*f.nii.gz"
    ):
        MatchGridd()(load(2, fixed, moving))


def test_a_slice_seen_from_behind_is_turned(save) -> None:
    data = smooth(SLICE)
    flipped = np.diag([-1.0, 1, -1, 1])
    flipped[0, 3] = SLICE[0] - 1
    pair = MatchGridd()(load(2, save("f.nii.gz", data), save("m.nii.gz", data[::-1], flipped)))
    torch.testing.assert_close(pair["moving"].as_tensor(), pair["fixed"].as_tensor(), rtol=0, atol=1e-4)


def test_a_volume_does_not_match_a_slice(save) -> None:
    volume, flat = save("v.nii.gz", smooth(VOLUME)), save("s.nii.gz", smooth(SLICE))
    pair = {"fixed": load(3, volume, volume)["fixed"], "moving": load(2, flat, flat)["moving"]}
    with pytest.raises(PairError, match="differ in dimension"):
        MatchGridd()(pair)
