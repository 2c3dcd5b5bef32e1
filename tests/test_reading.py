# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom import write_series
from scans import SLICE, VOLUME, make_affine

from monai_nodeo.files import ImageFileError, ImageGrid, open_stored

OBLIQUE = make_affine((1.2, 0.9, 2.5), (0.3, -0.2, 0.4), (12.5, -30.25, 41.75))
TURNED = make_affine((0.8, 1.1, 3.0), (-1.2, 0.4, 2.8), (-5, 60, 7.5))


def numbers(shape: tuple[int, ...], dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def itk_image(values: np.ndarray, affine: np.ndarray) -> sitk.Image:
    dims = values.ndim
    image = sitk.GetImageFromArray(values.T)
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :dims], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:dims, :dims] / spacing).ravel().tolist())
    image.SetOrigin(lps[:dims, 3].tolist())
    return image


def refuse(path: Path | str) -> str:
    with pytest.raises(ImageFileError) as info:
        open_stored(path)
    return str(info.value)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.hdr", "a.nii.gz", "A.NII"])
@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([2.0, 0.5, 1, 1])])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_values_and_place_are_those_that_itk_wrote(tmp_path, name, affine, dtype):
    values = numbers(VOLUME, dtype)
    path = tmp_path / name.lower()
    sitk.WriteImage(itk_image(values, affine), str(path))
    path = path.rename(tmp_path / name)
    stored = open_stored(path)
    np.testing.assert_array_equal(stored.load(), values)
    np.testing.assert_allclose(stored.affine, affine, atol=1e-5)
    assert (stored.shape, stored.dtype, stored.path) == (VOLUME, np.dtype(dtype), str(path))
    grid = ImageGrid.from_file(path)
    np.testing.assert_array_equal(grid.affine, stored.affine)
    assert grid.shape == VOLUME


@pytest.mark.skipif(shutil.which("mrconvert") is None, reason="mrtrix3, a package of Debian, is not installed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel closes an .mgh late
@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.nii.gz"])
def test_values_and_place_are_those_that_mrtrix_wrote(tmp_path, name):
    values = numbers(VOLUME)
    nib.save(nib.Nifti1Image(values, OBLIQUE), tmp_path / "from.nii")
    subprocess.run(["mrconvert", "from.nii", name, "-quiet"], check=True, cwd=tmp_path)
    stored = open_stored(tmp_path / name)
    np.testing.assert_array_equal(stored.load(), values)
    np.testing.assert_allclose(stored.affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.float32)])
def test_pictures_are_slices(tmp_path, name, dtype):
    values = numbers((9, 11), dtype)
    sitk.WriteImage(itk_image(values, np.diag([-0.5, -0.25, 1, 1])), str(tmp_path / name))
    stored = open_stored(tmp_path / name)
    np.testing.assert_array_equal(stored.load(), values)
    assert stored.dtype == dtype
    assert stored.affine[2].tolist() == [0, 0, 1, 0]
    assert ImageGrid.from_file(tmp_path / name).spatial_dims == 2


@pytest.mark.parametrize("affine", [OBLIQUE, TURNED])
def test_a_folder_is_a_dicom_series(tmp_path, affine):
    values = numbers(VOLUME)
    write_series(tmp_path / "scan", values, affine)
    (tmp_path / "scan" / "notes.txt").write_text("no DICOM")
    stored = open_stored(tmp_path / "scan")
    flipped = np.allclose(stored.affine[:3, 2], -affine[:3, 2], atol=1e-4)  # slices may be counted from the other end
    expected = affine.copy()
    if flipped:
        expected[:3, 3] += affine[:3, 2] * (VOLUME[2] - 1)
        expected[:3, 2] *= -1
    np.testing.assert_allclose(stored.affine, expected, atol=1e-4)
    np.testing.assert_array_equal(stored.load(), values[:, :, ::-1] if flipped else values)
    assert stored.dtype == np.int16


def test_a_series_of_several_is_chosen_by_number_or_uid(tmp_path):
    first, second = numbers(VOLUME), numbers(VOLUME)[::-1]
    uids = [write_series(tmp_path / "study", v, OBLIQUE, n) for v, n in ((first, 3), (second, 12))]
    message = refuse(tmp_path / "study")
    assert f"{tmp_path}/study: 2 series in the folder; choose one as {tmp_path}/study#NUMBER" in message
    for uid, number in zip(uids, (3, 12), strict=True):
        assert f"#{number} echo {number}, 13 files, UID {uid}" in message
    for choice in ("12", uids[1]):
        np.testing.assert_array_equal(open_stored(f"{tmp_path}/study#{choice}").load(), second)
    assert "no series for '5' in the folder" in refuse(f"{tmp_path}/study#5")


def test_slices_that_make_no_volume(tmp_path, capfd):
    write_series(tmp_path / "gap", numbers(VOLUME), OBLIQUE, skip=(5,))
    assert "the slices are no regular grid (slice " in refuse(tmp_path / "gap")
    write_series(tmp_path / "tilted", numbers(VOLUME), OBLIQUE, shear=(0, 0.4, 0))
    assert "the gantry was tilted" in refuse(tmp_path / "tilted")
    assert "WARNING" not in capfd.readouterr().err  # ITK's own remark says less


def test_one_slice_of_a_series_is_a_slice(tmp_path):
    values = numbers(SLICE)
    write_series(tmp_path / "scout", values, OBLIQUE)
    stored = open_stored(tmp_path / "scout")
    assert stored.shape == SLICE
    np.testing.assert_array_equal(stored.load(), values)
    np.testing.assert_allclose(stored.affine[:3, [0, 1, 3]], OBLIQUE[:3, [0, 1, 3]], atol=1e-4)


def test_what_is_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nrrd: there is no such file"):
        open_stored(tmp_path / "gone.nrrd")
    (tmp_path / "empty.mha").touch()
    assert "the file is empty" in refuse(tmp_path / "empty.mha")
    for name in ("a.docx", "a.mha", "a.nrrd", "a.png", "a.dcm"):
        (tmp_path / name).write_bytes(b"\x89 no image" * 100)
        message = refuse(tmp_path / name)
        assert f"{tmp_path / name}: not an image that SimpleITK reads" in message
        assert "expected NIfTI, NRRD, MHA, OME-Zarr, a folder of DICOM files" in message
    assert "holds no DICOM files" in refuse(tmp_path)
    sitk.WriteImage(sitk.Image([9, 11, 13], sitk.sitkComplexFloat32), str(tmp_path / "complex.nrrd"))
    assert "complex of 32-bit float; expected real numbers, take the magnitude" in refuse(tmp_path / "complex.nrrd")


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("colour.png", (9, 11), (9, 11, 1, 1, 3)),
        ("vector.nrrd", (9, 11, 13), (9, 11, 13, 1, 3)),
        ("vector.nii.gz", (9, 11, 13), (9, 11, 13, 1, 3)),
        ("both.mha", (9, 11, 13, 4), (9, 11, 13, 4, 3)),
    ],
)
def test_channels_are_the_last_axis(tmp_path, name, sizes, shape):
    values = numbers((*sizes, 3), np.uint8)
    axes = (*reversed(range(len(sizes))), len(sizes))
    image = sitk.GetImageFromArray(values.transpose(axes), isVector=True)
    sitk.WriteImage(image, str(tmp_path / name))
    stored = open_stored(tmp_path / name)
    assert stored.shape == shape
    np.testing.assert_array_equal(stored.load(), values.reshape(shape))
    if len(sizes) < 4:
        assert ImageGrid.from_file(tmp_path / name).shape == sizes
    else:
        with pytest.raises(ValueError, match=rf"{name}: .* a series; expected an image, extract one volume first"):
            ImageGrid.from_file(tmp_path / name)


def test_colours_of_nifti_are_channels(tmp_path):
    values = numbers((*VOLUME, 3), np.uint8)
    colours = np.zeros(VOLUME, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for i, name in enumerate("RGB"):
        colours[name] = values[..., i]
    nib.save(nib.Nifti1Image(colours, OBLIQUE), tmp_path / "a.nii.gz")
    stored = open_stored(tmp_path / "a.nii.gz")
    assert (stored.shape, stored.dtype) == ((*VOLUME, 1, 3), np.uint8)
    np.testing.assert_array_equal(stored.load()[:, :, :, 0], values)


def test_steps_of_a_series_are_known(tmp_path):
    image = sitk.GetImageFromArray(numbers((4, *VOLUME), np.int16), isVector=False)
    image.SetSpacing((1, 1, 2, 2.5))
    sitk.WriteImage(image, str(tmp_path / "series.nrrd"))
    assert open_stored(tmp_path / "series.nrrd").steps[0] == (2.5,)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.tif"])
def test_truncated_voxels_are_found_when_they_are_read(tmp_path, name):
    values = numbers((40, 50, 3) if name != "a.tif" else (40, 50))
    sitk.WriteImage(itk_image(values, np.diag([-1.0, -1, 1, 1])), str(tmp_path / name), useCompression=False)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ImageFileError, match=rf"{name}: "):
        open_stored(tmp_path / name).load()
