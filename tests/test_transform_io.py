# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from grids import CORONAL, FLIPPED, IN_PLANE, LARGEST_SHIFT, OBLIQUE, make_ddf, make_image
from scipy.ndimage import map_coordinates

from monai_nodeo.files import ImageGrid, atomic_path, read_displacement, write_displacement, write_image, write_labels

VOLUMES = [
    pytest.param(ImageGrid(affine, (23, 27, 31)), id=f"volume-{name}")
    for name, affine in [("oblique", OBLIQUE), ("flipped", FLIPPED), ("coronal", CORONAL)]
]
SLICES = [
    pytest.param(ImageGrid(affine, (29, 37, 1)), id=f"slice-{name}")
    for name, affine in [("oblique", OBLIQUE), ("flipped", FLIPPED), ("coronal", CORONAL)]
]
PLANES = [pytest.param(ImageGrid(IN_PLANE, (29, 37)), id="plane")]
GRIDS = VOLUMES + SLICES + PLANES


def load(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def voxels(grid: ImageGrid) -> np.ndarray:
    return np.indices(grid.spatial_shape, dtype=float)


def warp(moving: np.ndarray, grid: ImageGrid, ddf: np.ndarray) -> np.ndarray:
    return map_coordinates(moving, voxels(grid) + ddf, order=1)


def interior(array: np.ndarray) -> np.ndarray:
    margin = int(LARGEST_SHIFT) + 1
    return array[(slice(margin, -margin),) * array.ndim]


def itk_transform(path: Path, grid: ImageGrid, fixed: sitk.Image) -> sitk.DisplacementFieldTransform:
    if grid.shape[2:] == (1,):
        # ITK drops the third axis of a one-slice vector file; see write_displacement.
        values = load(path).get_fdata()[:, :, :, 0]
        field = sitk.GetImageFromArray(values.transpose(2, 1, 0, 3), isVector=True)
        field.CopyInformation(fixed)
    else:
        field = sitk.ReadImage(path, sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(field)


@pytest.mark.parametrize("grid", GRIDS)
def test_simpleitk_applies_our_field_and_writes_it_as_we_do(grid, tmp_path):
    ddf, moving = make_ddf(grid), make_image(grid)
    write_displacement(tmp_path / "displacement.nii.gz", ddf, grid)
    write_image(tmp_path / "moving.nii.gz", moving, grid)
    image = sitk.ReadImage(tmp_path / "moving.nii.gz", sitk.sitkFloat64)
    transform = itk_transform(tmp_path / "displacement.nii.gz", grid, image)
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear)).T.reshape(moving.shape)
    difference = np.abs(interior(theirs - warp(moving, grid, ddf))).max() / np.ptp(moving)
    unregistered = np.abs(interior(moving - warp(moving, grid, ddf))).max() / np.ptp(moving)
    assert unregistered > 0.1
    assert difference < 1e-5
    sitk.WriteImage(transform.GetDisplacementField(), tmp_path / "itks.nii.gz")
    ours, itks = load(tmp_path / "displacement.nii.gz"), load(tmp_path / "itks.nii.gz")
    assert ours.shape == itks.shape
    np.testing.assert_allclose(ours.get_fdata(), itks.get_fdata(), rtol=1e-6)
    back, its_grid = read_displacement(tmp_path / "itks.nii.gz")
    np.testing.assert_allclose(back, ddf, rtol=0, atol=2e-6)
    assert its_grid.shape == grid.shape


@pytest.mark.parametrize("grid", GRIDS)
def test_displacement_survives_the_round_trip_with_the_header_of_an_itk_field(grid, tmp_path):
    ddf = make_ddf(grid)
    write_displacement(tmp_path / "displacement.nii", ddf, grid)
    back, its_grid = read_displacement(tmp_path / "displacement.nii")
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, ddf, rtol=0, atol=1e-6)
    assert its_grid.shape == grid.shape
    np.testing.assert_allclose(its_grid.affine, grid.affine, rtol=1e-6, atol=1e-6)
    header = load(tmp_path / "displacement.nii").header
    assert header["dim"].tolist()[:6] == [5, *(*grid.shape, 1)[:3], 1, len(grid.shape)]
    assert int(header["intent_code"]) == 1007
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_sform(), grid.affine, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), grid.affine, atol=1e-4)
    assert min(int(header["sform_code"]), int(header["qform_code"])) > 0


@pytest.mark.parametrize("shape", [(9, 11, 13), (9, 11, 1), (9, 11)])
def test_image_keeps_grid_and_values(shape, tmp_path):
    source = nib.Nifti1Image(np.zeros(shape, np.int16), IN_PLANE)
    source.set_sform(IN_PLANE, 4)
    source.set_qform(IN_PLANE, 1)
    source.header.set_xyzt_units("mm", "sec")
    source.header.set_slope_inter(0.5, 3)
    source.header["cal_max"] = 7
    nib.save(source, tmp_path / "fixed.nii.gz")
    grid = ImageGrid.from_file(tmp_path / "fixed.nii.gz")
    values = np.random.default_rng(0).standard_normal(grid.spatial_shape)
    write_image(tmp_path / "image.nii.gz", values, grid)
    image = load(tmp_path / "image.nii.gz")
    assert image.shape == shape
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.get_fdata().reshape(values.shape), values.astype(np.float32))
    np.testing.assert_array_equal(image.affine, load(tmp_path / "fixed.nii.gz").affine)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(np.array(image.header.get_zooms()), (1.2, 0.9, 2.5)[: len(shape)], rtol=1e-6)
    assert float(image.header["cal_max"]) == 0


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, np.uint8), (0, 256, np.int16), (-1, 3, np.int16), (0, 14175, np.int16), (0, 40000, np.int32)],
)
@pytest.mark.parametrize("given", [np.float32, np.int64, np.int32])
def test_labels_take_the_smallest_common_type(low, high, dtype, given, tmp_path):
    grid = ImageGrid(OBLIQUE, (9, 11, 1))
    labels: np.ndarray = np.full((9, 11), low).astype(given)
    labels[3, 4] = high
    write_labels(tmp_path / "labels.nii.gz", labels, grid)
    image = load(tmp_path / "labels.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj)[..., 0], labels)


@pytest.mark.parametrize(("codes", "kept"), [((1, 1), (1, 1)), ((4, 1), (4, 1)), ((2, 0), (2, 2)), ((0, 1), (1, 1))])
def test_xform_codes_are_kept_and_never_unknown(codes, kept, tmp_path):
    image = nib.Nifti1Image(np.zeros((9, 11, 13), np.float32), None)
    image.set_sform(OBLIQUE, codes[0])
    image.set_qform(OBLIQUE, codes[1])
    nib.save(image, tmp_path / "fixed.nii.gz")
    grid = ImageGrid.from_file(tmp_path / "fixed.nii.gz")
    assert (grid.sform_code, grid.qform_code) == kept
    np.testing.assert_array_equal(grid.affine, load(tmp_path / "fixed.nii.gz").affine)


SHEARED = OBLIQUE @ np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("affine", "shape", "message"),
    [
        (np.eye(4), (9, 11, 13, 2), "stored shape"),
        (np.eye(4), (9,), "stored shape"),
        (np.eye(4), (9, 0, 11), "stored shape"),
        (np.eye(3), (9, 11), "4 x 4"),
        (np.full((4, 4), np.nan), (9, 11, 13), "4 x 4"),
        (np.diag([1.0, 0, 1, 1]), (9, 11, 13), "voxel size of 0"),
        (SHEARED, (9, 11, 13), "right angles"),
        (CORONAL, (9, 11), "x-y plane"),
    ],
)
def test_grid_that_itk_cannot_hold_is_refused(affine, shape, message):
    with pytest.raises(ValueError, match=message):
        ImageGrid(affine, shape)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1), ("unknown", 1)])
def test_grid_is_in_mm_whatever_the_unit_of_the_header(tmp_path, unit, factor):
    image = nib.Nifti1Image(np.zeros((9, 11, 13), np.float32), OBLIQUE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "tissue.nii.gz")
    grid = ImageGrid.from_file(tmp_path / "tissue.nii.gz")
    expected = np.diag([factor, factor, factor, 1]) @ OBLIQUE
    np.testing.assert_allclose(grid.affine, expected, rtol=1e-5, atol=1e-6 * factor)
    spacing = sitk.ReadImage(str(tmp_path / "tissue.nii.gz")).GetSpacing()  # ITK sees the same sizes
    np.testing.assert_allclose(spacing, np.linalg.norm(grid.affine[:3, :3], axis=0), rtol=1e-5)


VOLUME = ImageGrid(OBLIQUE, (9, 11, 13))
SLICE = ImageGrid(OBLIQUE, (9, 11, 1))


@pytest.mark.parametrize(
    ("grid", "shape"),
    [(VOLUME, (9, 11, 13)), (VOLUME, (3, 11, 9, 13)), (VOLUME, (1, 3, 9, 11, 13)), (SLICE, (3, 9, 11, 1))],
)
def test_displacement_off_the_grid_is_refused(grid, shape, tmp_path):
    with pytest.raises(ValueError, match=r"field\.nii\.gz: ddf has shape .* expected"):
        write_displacement(tmp_path / "field.nii.gz", np.zeros(shape), grid)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path):
    for value, message in ((0.5, "fractions"), (2**40, "int32")):
        with pytest.raises(ValueError, match=rf"out\.nii\.gz.*{message}"):
            write_labels(tmp_path / "out.nii.gz", np.full((9, 11), value), SLICE)
    with pytest.raises(ValueError, match=r"out\.img.*\.nii\.gz"):
        write_image(tmp_path / "out.img", np.zeros((9, 11)), SLICE)
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_image(tmp_path / "absent" / "out.nii", np.zeros((9, 11)), SLICE)
    with pytest.raises(ValueError, match="expected 1 or more"):
        ImageGrid(OBLIQUE, (9, 11, 13), 0, 0)


def test_another_format_has_a_grid_but_no_field(tmp_path):
    nib.save(nib.MGHImage(np.zeros((9, 11, 13), np.float32), OBLIQUE), tmp_path / "fixed.mgz")
    grid = ImageGrid.from_file(tmp_path / "fixed.mgz")
    assert grid.shape == (9, 11, 13)
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-4)
    with pytest.raises(ValueError, match="its type is MGHImage, expected NIfTI"):
        read_displacement(tmp_path / "fixed.mgz")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused(value, tmp_path):
    values = np.zeros((9, 11))
    values[2, 3] = value
    for write, array in [(write_image, values), (write_labels, values), (write_displacement, np.stack([values] * 2))]:
        with pytest.raises(ValueError, match=r"out\.nii\.gz.*NaN, infinite"):
            write(tmp_path / "out.nii.gz", array, SLICE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "intent", "message"),
    [
        ((9, 11, 13), "vector", r"shape is \(9, 11, 13\)"),
        ((9, 11, 13, 3), "vector", "shape is"),
        ((9, 11, 13, 2, 3), "vector", "shape is"),
        ((9, 11, 13, 1, 2), "vector", "2 components"),
        ((9, 11, 13, 1, 4), "vector", "4 components"),
        ((9, 11, 13, 1, 3), "none", "intent code is 0, expected 1007"),
    ],
)
def test_file_that_is_no_field_is_refused(shape, intent, message, tmp_path):
    image = nib.Nifti1Image(np.zeros(shape, np.float32), OBLIQUE)
    image.header.set_intent(intent)
    nib.save(image, tmp_path / "field.nii.gz")
    with pytest.raises(ValueError, match=rf"field\.nii\.gz is no ITK displacement field: .*{message}"):
        read_displacement(tmp_path / "field.nii.gz")


def test_damaged_foreign_and_missing_fields_are_named(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no image")
    for name, error in (("text.nii.gz", ValueError), ("absent.nii.gz", FileNotFoundError)):
        with pytest.raises(error, match=name):
            read_displacement(tmp_path / name)
    for name in ("field.nii", "field.nii.gz"):
        path = tmp_path / name
        write_displacement(path, make_ddf(VOLUME), VOLUME)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            read_displacement(path)


@pytest.mark.parametrize(("direction", "message"), [(np.array([0, 0, 1.0]), "leaves the slice"), (np.nan, "NaN")])
def test_field_that_no_2d_ddf_holds_is_refused(direction, message, tmp_path):
    field = np.zeros((9, 11, 1, 1, 3), np.float32)
    field[4, 5, 0, 0] = direction
    image = nib.Nifti1Image(field, OBLIQUE)
    image.header.set_intent("vector")
    nib.save(image, tmp_path / "field.nii.gz")
    with pytest.raises(ValueError, match=rf"field\.nii\.gz.*{message}"):
        read_displacement(tmp_path / "field.nii.gz")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("older", [None, "older"])
def test_failed_write_leaves_the_folder_as_it_was(error, older, tmp_path):
    target = tmp_path / "result.nii.gz"
    if older:
        target.write_text(older)

    def write_half() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ([older] if older else [])


def test_file_appears_whole_and_with_the_usual_permissions(tmp_path):
    target = tmp_path / "result.nii.gz"
    target.write_text("older")
    with atomic_path(str(target)) as partial:
        assert partial.name.endswith(".nii.gz")
        partial.write_text("newer")
        assert target.read_text(encoding="utf-8") == "older"
        # What a killed run would leave here is no *.nii.gz of this folder.
        assert list(tmp_path.glob("*.nii.gz")) == [target]
    assert target.read_text(encoding="utf-8") == "newer"
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(os.stat(target).st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        (np.int16, np.int16),
        ("uint8", np.uint8),
        (np.uint16, np.uint16),
        (np.int64, np.float32),
        (np.float64, np.float32),
    ],
)
def test_images_keep_the_type_of_whole_numbers(tmp_path, dtype, written):
    values = np.linspace(-3.6, 300.4, 9 * 11 * 13).reshape(9, 11, 13)
    write_image(tmp_path / "a.nii.gz", values, VOLUME, dtype)
    image = load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == written
    expected = values.astype(np.float32)
    if written is not np.float32:
        limits = np.iinfo(written)
        expected = np.rint(values).clip(limits.min, limits.max)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
