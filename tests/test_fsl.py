# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""FSL's matrices and fields, judged by fslpy, and the matrix of greedy."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from grids import OBLIQUE, PLANE, VOLUME, make_affine, make_ddf, make_start, registration, world

from monai_nodeo.apps.cli import main
from monai_nodeo.files import Affine, Displacement, ImageGrid, Transform, read_transform, write_transform

INDEX = np.random.default_rng(5).integers(1, 21, (40, 3))
MOVING = ImageGrid(make_affine((0.1, 0.2, -0.3), (0.8, 1.1, 1.4)), (33, 29, 25))


def saved(grid, path):
    nib.save(nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine), path)
    return str(path)


@pytest.fixture(params=[OBLIQUE, make_affine((0.3, -0.2, 0.4), (-1.2, 0.9, 2.5))], ids=["neurological", "radiological"])
def images(request, tmp_path):
    """The fixed grid, with x mirrored by FSL or not; files of a fixed image and of a moving one on another grid."""
    grid = ImageGrid(request.param, VOLUME.shape)
    return grid, (saved(grid, tmp_path / "fixed.nii.gz"), saved(MOVING, tmp_path / "moving.nii.gz"))


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_a_field_of_fnirt_is_what_fslpy_says(form, images, tmp_path):
    fnirt = pytest.importorskip("fsl.transform.fnirt", reason="pip install fslpy for this test")
    from fsl.data.image import Image

    grid, (fixed, moving) = images
    write_transform(tmp_path / "t.nii.gz", registration(grid), images=(fixed, moving), tool="fsl")
    if form == "absolute":
        ours = nib.Nifti1Image.from_filename(tmp_path / "t.nii.gz")
        to_fsl = Image(fixed).getAffine("voxel", "fsl")
        place = np.moveaxis(np.indices(grid.shape), 0, -1) @ to_fsl[:3, :3].T + to_fsl[:3, 3]
        nib.save(nib.Nifti1Image(ours.get_fdata() + place, ours.affine, ours.header), tmp_path / "t.nii.gz")
    theirs = fnirt.readFnirt(str(tmp_path / "t.nii.gz"), Image(moving), Image(fixed))
    assert theirs.deformationType == form
    points = world(grid, INDEX)
    expected = registration(grid).map_points(points)
    np.testing.assert_allclose(theirs.transform(points, "world", "world"), expected, rtol=0, atol=1e-4)
    back = read_transform(tmp_path / "t.nii.gz", "fsl", (fixed, moving))
    np.testing.assert_allclose(back.map_points(points), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(shutil.which("wb_command") is None, reason="connectome-workbench of Debian is not installed")
def test_workbench_makes_our_field_of_fnirt_one_of_itk_and_back(images, tmp_path):
    grid, (fixed, moving) = images
    write_transform(tmp_path / "fsl.nii.gz", registration(grid), images=(fixed, moving), tool="fsl")
    there, back = tmp_path / "itk.nii.gz", tmp_path / "its.nii.gz"
    ours = ["-from-fnirt", tmp_path / "fsl.nii.gz", moving, "-to-itk", there]
    for words in (ours, ["-from-itk", there, "-to-fnirt", back, moving]):
        subprocess.run(["wb_command", "-convert-warpfield", *words], check=True, capture_output=True)
    points = world(grid, INDEX)
    expected = registration(grid).map_points(points)
    for found in (read_transform(there), read_transform(back, "fsl", (fixed, moving))):
        np.testing.assert_allclose(found.map_points(points), expected, rtol=0, atol=1e-4)


def test_a_matrix_of_flirt_is_what_fslpy_says(images, tmp_path):
    flirt = pytest.importorskip("fsl.transform.flirt", reason="pip install fslpy for this test")
    from fsl.data.image import Image

    grid, (fixed, moving) = images
    start = make_start(grid)
    write_transform(tmp_path / "ours.mat", Transform((Affine(start),)), images=(fixed, moving), tool="fsl")
    theirs = flirt.fromFlirt(flirt.readFlirt(tmp_path / "ours.mat"), Image(moving), Image(fixed), "world", "world")
    np.testing.assert_allclose(np.linalg.inv(theirs), start, atol=1e-5)  # theirs goes from the moving image
    matrix = flirt.toFlirt(np.linalg.inv(start), Image(moving), Image(fixed), "world", "world")
    flirt.writeFlirt(matrix, tmp_path / "theirs.mat")
    (step,) = read_transform(tmp_path / "theirs.mat", "fsl", (fixed, moving)).steps
    np.testing.assert_allclose(step.matrix, start, atol=1e-5)


def test_a_field_between_axial_and_coronal_images_comes_back(tmp_path):
    turned = ImageGrid(VOLUME.affine[:, [0, 2, 1, 3]] * [1, -1, 1, 1], (23, 31, 27))
    images = saved(VOLUME, tmp_path / "fixed.nii.gz"), saved(turned, tmp_path / "moving.nii.gz")
    ours = Transform((Displacement(VOLUME, make_ddf(VOLUME)),))
    write_transform(tmp_path / "t.nii.gz", ours, images=images, tool="fsl")
    points = world(VOLUME, INDEX)
    there = read_transform(tmp_path / "t.nii.gz", "fsl", images).map_points(points)
    np.testing.assert_allclose(there, ours.map_points(points), rtol=0, atol=1e-4)


def test_convert_asks_for_what_the_tools_need(images, tmp_path):
    grid, (fixed, moving) = images
    write_transform(tmp_path / "t.h5", Transform((Affine(make_start(grid)),)))
    both = ["-r", fixed, "-m", moving]

    def convert(source, target, *options):
        result = CliRunner().invoke(main, ["convert", str(tmp_path / source), str(tmp_path / target), *options])
        return result.stderr

    assert "give both, as the reference and as the moving image" in convert("t.h5", "f.mat", "--to", "fsl", "-r", fixed)
    assert "give one of these names" in convert("t.h5", "f.x5", "--to", "fsl", *both)
    assert not convert("t.h5", "f.mat", "--to", "fsl", *both)
    assert not convert("f.mat", "greedy.mat", "--from", "fsl", "--to", "greedy", *both)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "greedy.mat"), make_start(grid), atol=1e-6)  # RAS mm, as it is
    assert not convert("greedy.mat", "back.tfm", "--from", "greedy")
    np.testing.assert_allclose(read_transform(tmp_path / "back.tfm").steps[0].matrix, make_start(grid), atol=1e-6)
    assert "monai-nodeo convert --from" in convert("f.mat", "g.tfm")
    (tmp_path / "bad.mat").write_text("1 2 3", encoding="utf-8")
    for tool in ("fsl", "greedy"):
        assert "expected four rows of four numbers" in convert("bad.mat", "g.tfm", "--from", tool, *both)
    write_transform(tmp_path / "plane.tfm", Transform((Affine(np.eye(4), len(PLANE.shape)),)))
    assert "of 2D points" in convert("plane.tfm", "p.mat", "--to", "greedy")
    coefficients = nib.Nifti1Image(np.zeros((5, 6, 7, 3), np.float32), grid.affine)
    coefficients.header.set_intent(2007, allow_unknown=True)
    nib.save(coefficients, tmp_path / "coef.nii.gz")
    assert "fnirtfileutils" in convert("coef.nii.gz", "c.h5", "--from", "fsl", *both)
