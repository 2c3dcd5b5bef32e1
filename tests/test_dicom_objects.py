# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration objects and warped series of DICOM, checked by pydicom, pydicomRT, SimpleITK and Plastimatch."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dicom import write_series
from grids import FLIPPED, OBLIQUE, VOLUME, make_ddf, make_start, moved, registration, world
from scipy.ndimage import map_coordinates

from monai_nodeo.apps.cli import main
from monai_nodeo.extras import MissingExtraError
from monai_nodeo.files import Affine, ImageGrid, Transform, open_stored, read_transform, write_transform

pydicom = pytest.importorskip("pydicom")
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS
INDEX = np.random.default_rng(5).integers(1, np.array(VOLUME.shape) - 1, (40, 3))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Folders of a fixed and a moving series on the same grid."""
    folders = [tmp_path_factory.mktemp(name) for name in ("fixed", "moving")]
    for number, folder in enumerate(folders):
        values = np.random.default_rng(number).integers(-900, 900, VOLUME.shape)
        write_series(folder, values, OBLIQUE, number + 1)
    return tuple(map(str, folders))


def sampled_by_the_standard(path, points):
    """Points of the registered frame in the source frame, RAS mm, by equation C.20.3-1 of PS3.3."""
    (item,) = pydicom.dcmread(path).DeformableRegistrationSequence
    (grid,) = item.DeformableRegistrationGridSequence
    row, column = np.reshape(grid.ImageOrientationPatient, (2, 3)).astype(float)
    axes = np.stack([row, column, np.cross(row, column)], 1) * grid.GridResolution
    lps = points @ FLIP[:3, :3]
    index = np.linalg.solve(axes, (lps - np.array(grid.ImagePositionPatient, float)).T)
    field = np.frombuffer(grid.VectorGridData, "<f4").reshape(*grid.GridDimensions[::-1], 3)
    shift = np.stack([map_coordinates(field[..., c], index[::-1], order=1) for c in range(3)], 1)
    for name, add in (("Pre", shift), ("Post", 0)):
        (one,) = item[f"{name}DeformationMatrixRegistrationSequence"].value
        matrix = np.reshape(one.FrameOfReferenceTransformationMatrix, (4, 4)).astype(float)
        lps = lps @ matrix[:3, :3].T + matrix[:3, 3] + add
    return lps @ FLIP[:3, :3]


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["right-handed", "left-handed"])
def test_deformable_object_goes_the_way_of_the_standard(affine, series, tmp_path):
    grid = ImageGrid(affine, VOLUME.shape)
    write_transform(tmp_path / "t.dcm", registration(grid), grid, series)
    expected = moved(grid, make_ddf(grid), make_start(grid), INDEX)
    assert np.abs(expected - world(grid, INDEX)).max() > 1
    for there in (
        sampled_by_the_standard(tmp_path / "t.dcm", world(grid, INDEX)),
        read_transform(tmp_path / "t.dcm").map_points(world(grid, INDEX)),
    ):
        np.testing.assert_allclose(there, expected, rtol=0, atol=2e-5)
    fixed, moving = (pydicom.dcmread(open_file(folder)) for folder in series)
    data = pydicom.dcmread(tmp_path / "t.dcm")
    assert data.FrameOfReferenceUID == fixed.FrameOfReferenceUID
    assert data.DeformableRegistrationSequence[0].SourceFrameOfReferenceUID == moving.FrameOfReferenceUID
    assert data.StudyInstanceUID == fixed.StudyInstanceUID


def test_matrix_before_the_deformation_is_read(series, tmp_path):
    write_transform(tmp_path / "t.dcm", registration(VOLUME), images=series)
    data = pydicom.dcmread(tmp_path / "t.dcm")
    (before,) = data.DeformableRegistrationSequence[0].PreDeformationMatrixRegistrationSequence
    before.FrameOfReferenceTransformationMatrix = [1.1, 0.2, 0, 3, 0, 0.9, 0.1, -2, 0.05, 0, 1, 1, 0, 0, 0, 1]
    data.save_as(tmp_path / "t.dcm")
    points = world(VOLUME, INDEX)
    there = read_transform(tmp_path / "t.dcm").map_points(points)
    np.testing.assert_allclose(there, sampled_by_the_standard(tmp_path / "t.dcm", points), rtol=0, atol=2e-5)


def test_matrix_of_a_spatial_registration_leads_from_the_moving_to_the_fixed_frame(series, tmp_path):
    start = make_start(VOLUME)
    write_transform(tmp_path / "t.dcm", Transform((Affine(start),)), images=series)
    np.testing.assert_allclose(read_transform(tmp_path / "t.dcm").steps[0].matrix, start, atol=1e-9)
    *_, item = pydicom.dcmread(tmp_path / "t.dcm").RegistrationSequence
    assert item.FrameOfReferenceUID == pydicom.dcmread(open_file(series[1])).FrameOfReferenceUID
    (stored,) = item.MatrixRegistrationSequence[0].MatrixSequence
    matrix = np.reshape(stored.FrameOfReferenceTransformationMatrix, (4, 4)).astype(float)
    np.testing.assert_allclose(FLIP @ np.linalg.inv(matrix) @ FLIP, start, atol=1e-9)


def test_the_first_of_several_matrices_moves_a_point_first(series, tmp_path):
    write_transform(tmp_path / "t.dcm", Transform((Affine(make_start(VOLUME)),)), images=series)
    data = pydicom.dcmread(tmp_path / "t.dcm")
    (registered,) = data.RegistrationSequence[1].MatrixRegistrationSequence
    first, second = (copy.deepcopy(registered.MatrixSequence[0]) for _ in range(2))
    first.FrameOfReferenceTransformationMatrix = [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]
    second.FrameOfReferenceTransformationMatrix = [1, 0, 0, 3, 0, 1, 0, 4, 0, 0, 1, 5, 0, 0, 0, 1]
    registered.MatrixSequence = [first, second]
    data.save_as(tmp_path / "t.dcm")
    (step,) = read_transform(tmp_path / "t.dcm").steps
    to_fixed = FLIP @ step.inverse().matrix @ FLIP
    np.testing.assert_allclose(to_fixed @ [1, 1, 1, 1], [5, 6, 7, 1], atol=1e-12)


def headers(folder):
    return [pydicom.dcmread(file) for file in sorted(Path(folder).iterdir())]


def by_pydicomrt(item):
    """A registration as pydicomRT reads it, as a transform of SimpleITK."""
    grid, field = item["DeformableRegistrationGrid"], sitk.DisplacementFieldTransform(3)
    image = sitk.GetImageFromArray(grid["VectorGridData"].astype(float), isVector=True)
    image.SetOrigin(list(map(float, grid["ImagePositionPatient"])))
    image.SetSpacing(list(map(float, grid["GridResolution"])))
    row, column = np.reshape(grid["ImageOrientationPatient"], (2, 3)).astype(float)
    image.SetDirection(np.stack([row, column, np.cross(row, column)], 1).ravel().tolist())
    field.SetDisplacementField(image)
    np.testing.assert_array_equal(item["PreDeformationMatrixRegistration"], np.eye(4).ravel())
    return sitk.CompositeTransform([affine_of(item["PostDeformationMatrixRegistration"]), field])


def affine_of(matrix):
    matrix, affine = np.reshape(matrix, (4, 4)), sitk.AffineTransform(3)
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(matrix[:3, 3].tolist())
    return affine


def through_itk(transform, ras):
    there = [transform.TransformPoint(point.tolist()) for point in ras @ FLIP[:3, :3]]
    return np.array(there) @ FLIP[:3, :3]


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["right-handed", "left-handed"])
def test_pydicomrt_reads_our_deformable_object_and_we_its(affine, series, tmp_path):
    reg = pytest.importorskip("pydicomrt.reg", reason="pip install pydicomrt for this test")
    grid = ImageGrid(affine, VOLUME.shape)
    write_transform(tmp_path / "ours.dcm", registration(grid), grid, series)
    assert reg.check_deformable_reg_iod(pydicom.dcmread(tmp_path / "ours.dcm"))["result"]
    (item,) = reg.get_deformable_registrations(pydicom.dcmread(tmp_path / "ours.dcm"))
    points, theirs = world(grid, INDEX), by_pydicomrt(item)
    expected = moved(grid, make_ddf(grid), make_start(grid), INDEX)
    np.testing.assert_allclose(through_itk(theirs, points), expected, rtol=0, atol=2e-5)

    fixed, moving = map(headers, series)
    before = np.diag([1.1, 0.9, 1.0, 1.0])
    before[:3, 3] = 3, -2, 1
    field = sitk.DisplacementFieldTransform(theirs.GetBackTransform())
    builder = reg.DeformableSpatialRegistrationBuilder(fixed)
    builder.add_registration(
        moving, field, before, item["PostDeformationMatrixRegistration"], "RIGID_SCALE", "AFFINE"
    ).build().save_as(tmp_path / "theirs.dcm", enforce_file_format=True)
    lps = points @ FLIP[:3, :3]
    shift = np.array([field.TransformPoint(point.tolist()) for point in lps]) - lps
    there = lps @ before[:3, :3].T + before[:3, 3] + shift
    expected = through_itk(affine_of(item["PostDeformationMatrixRegistration"]), there @ FLIP[:3, :3])
    found = read_transform(tmp_path / "theirs.dcm").map_points(points)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_pydicomrt_reads_our_matrix_and_we_its(series, tmp_path):
    reg = pytest.importorskip("pydicomrt.reg", reason="pip install pydicomrt for this test")
    start, (fixed, moving) = make_start(VOLUME), map(headers, series)
    write_transform(tmp_path / "ours.dcm", Transform((Affine(start),)), images=series)
    assert reg.check_spatial_reg_iod(pydicom.dcmread(tmp_path / "ours.dcm"))["result"]
    theirs = reg.get_spatial_registrations(pydicom.dcmread(tmp_path / "ours.dcm"))
    to_fixed = np.reshape(theirs[fixed[0].FrameOfReferenceUID][moving[0].FrameOfReferenceUID], (4, 4))
    np.testing.assert_allclose(FLIP @ np.linalg.inv(to_fixed) @ FLIP, start, atol=1e-9)
    builder = reg.SpatialRegistrationBuilder(fixed)
    builder.add_registration(moving, to_fixed, "AFFINE")
    builder.build().save_as(tmp_path / "theirs.dcm", enforce_file_format=True)
    (step,) = read_transform(tmp_path / "theirs.dcm").steps
    np.testing.assert_allclose(step.matrix, start, atol=1e-6)


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch, a package of Debian, is not installed")
def test_spatial_registration_of_plastimatch_is_read(series, tmp_path):
    angle = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.15, (3, -5, 7))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(angle.GetMatrix())
    affine.SetTranslation(angle.GetTranslation())
    sitk.WriteTransform(affine, str(tmp_path / "t.tfm"))
    command = ["plastimatch", "xf-convert", "--input", tmp_path / "t.tfm", "--output-dicom", tmp_path / "out"]
    command += ["--fixed-rcs", series[0], "--moving-rcs", series[1], "--filenames-without-uids"]
    subprocess.run(command, check=True, capture_output=True)
    (step,) = read_transform(tmp_path / "out" / "sro.dcm").steps
    np.testing.assert_allclose(step.matrix, Affine.from_itk(affine).matrix, atol=1e-4)  # it writes 6 decimals


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch, a package of Debian, is not installed")
def test_deformable_object_of_plastimatch_is_read(series, tmp_path):
    """Made of a field that we write, by all that it knows of such objects: it reads none."""
    grid = ImageGrid(OBLIQUE, VOLUME.shape)
    field = registration(grid)
    write_transform(tmp_path / "field.nii.gz", field, grid)
    sitk.WriteImage(sitk.ReadImage(tmp_path / "field.nii.gz"), tmp_path / "field.mha")
    command = ["plastimatch", "xf-convert", "--input", tmp_path / "field.mha", "--output-dicom", tmp_path / "out"]
    command += ["--fixed-rcs", series[0], "--moving-rcs", series[1], "--filenames-without-uids"]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = (tmp_path / "out").iterdir()
    assert "Deformable" in pydicom.dcmread(file).SOPClassUID.name
    points = world(grid, INDEX)
    expected = field.map_points(points)
    assert np.abs(expected - points).max() > 1
    np.testing.assert_allclose(read_transform(file).map_points(points), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools, a package of Debian, is not installed")
@pytest.mark.parametrize("of", ["DeformableSpatialRegistration", "SpatialRegistration", "MRImage"])
def test_dciodvfy_finds_nothing_that_it_does_not_find_in_the_series(of, series, tmp_path):
    file = tmp_path / "t.dcm"
    if of == "MRImage":
        write_transform(tmp_path / "t.h5", registration(VOLUME))
        words = ["apply", "-i", series[1], "-r", series[0], "-t", f"{tmp_path}/t.h5", "-o", f"{tmp_path}/warped/"]
        assert CliRunner().invoke(main, words).exit_code == 0
        file = open_file(tmp_path / "warped")
    else:
        affine = Transform((Affine(make_start(VOLUME)),))
        write_transform(file, affine if of == "SpatialRegistration" else registration(VOLUME), images=series)
    told, known = (
        subprocess.run(["dciodvfy", one], capture_output=True, text=True).stderr.splitlines()
        for one in (file, open_file(series[1]))
    )
    assert of in told
    assert not [line for line in told if line.startswith("Error") and line not in known]


@pytest.mark.parametrize("scaled", [False, True], ids=["whole numbers", "with a slope"])
def test_warped_series_lies_in_the_fixed_study(scaled, series, tmp_path):
    moving = series[1]
    if scaled:
        moving = str(tmp_path / "scaled")
        shutil.copytree(series[1], moving)
        for file in (tmp_path / "scaled").iterdir():
            data = pydicom.dcmread(file)
            data.RescaleSlope, data.RescaleIntercept = "0.37", "2.5"
            data.save_as(file)
    write_transform(tmp_path / "t.h5", registration(VOLUME))
    for output in ("warped.nii.gz", "warped/"):
        command = ["apply", "-i", moving, "-r", series[0], "-t", str(tmp_path / "t.h5"), "-o", f"{tmp_path}/{output}"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    expected = open_stored(tmp_path / "warped.nii.gz").load()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "warped")))
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image).T
    step = np.abs(expected).max() / 32767 if scaled else 0
    np.testing.assert_allclose(values, expected, rtol=0, atol=0.51 * step)
    fixed, warped = (pydicom.dcmread(open_file(folder)) for folder in (series[0], tmp_path / "warped"))
    assert warped.StudyInstanceUID == fixed.StudyInstanceUID
    assert warped.FrameOfReferenceUID == fixed.FrameOfReferenceUID
    assert warped.SeriesInstanceUID not in (
        fixed.SeriesInstanceUID,
        pydicom.dcmread(open_file(moving)).SeriesInstanceUID,
    )
    assert warped.ImageType[0] == "DERIVED"
    np.testing.assert_allclose(open_stored(tmp_path / "warped").affine, open_stored(series[0]).affine, atol=1e-5)


def test_what_dicom_does_not_hold_is_refused(series, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="names both images"):
        write_transform(tmp_path / "t.dcm", registration(VOLUME))
    with pytest.raises(ValueError, match="expected a Spatial Registration"):
        read_transform(open_file(series[0]))
    (tmp_path / "text.dcm").write_text("no object", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.dcm: no registration object"):
        read_transform(tmp_path / "text.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"monai-nodeo\[dicom\]"):
        write_transform(tmp_path / "t.dcm", registration(VOLUME), images=series)


def open_file(folder):
    return sorted(Path(folder).iterdir())[0]
