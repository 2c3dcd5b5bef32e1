# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""AFNI's affines and warps between oblique images, judged by nitransforms."""

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from grids import FLIPPED, OBLIQUE, PLANE, VOLUME, make_affine, make_start, registration, world
from nibabel.affines import apply_affine
from nitransforms.io.afni import AFNILinearTransform, _dicom_real_to_card

from monai_nodeo.apps.cli import main
from monai_nodeo.files import Affine, ImageGrid, Transform, read_transform, write_transform

MOVING = make_affine((0.1, 0.2, -0.3), (0.8, 1.1, 1.4))
INDEX = np.random.default_rng(5).integers(1, 21, (40, 3))
LPS = np.diag([-1.0, -1, 1])
SWAPPED = OBLIQUE[:, [1, 2, 0, 3]] * [1, -1, 1, 1]


@pytest.fixture(params=[OBLIQUE, FLIPPED, SWAPPED], ids=["oblique", "flipped", "swapped"])
def images(request, tmp_path):
    """The fixed grid; files of a fixed image and of a moving one, which is oblique in another way."""
    grid = ImageGrid(request.param, VOLUME.shape)
    for name, affine in (("fixed", grid.affine), ("moving", MOVING)):
        nib.save(nib.Nifti1Image(np.zeros(grid.shape, np.uint8), affine), tmp_path / f"{name}.nii.gz")
    return grid, (str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"))


def test_an_affine_is_what_nitransforms_says(images, tmp_path):
    grid, (fixed, moving) = images
    start = make_start(grid)
    write_transform(tmp_path / "a.aff12.1D", Transform((Affine(start),)), images=(fixed, moving))
    theirs = AFNILinearTransform.from_filename(tmp_path / "a.aff12.1D").to_ras(moving=moving, reference=fixed)
    np.testing.assert_allclose(theirs, start, atol=2e-3)  # it rounds voxel sizes to four decimals
    AFNILinearTransform.from_ras(start, moving=moving, reference=fixed).to_filename(tmp_path / "b.aff12.1D")
    (step,) = read_transform(tmp_path / "b.aff12.1D", images=(fixed, moving)).steps
    np.testing.assert_allclose(step.matrix, start, atol=2e-3)
    assert np.abs(read_transform(tmp_path / "b.aff12.1D").steps[0].matrix - start).max() > 1  # without the images


def test_a_warp_is_the_affine_of_nitransforms_in_coordinates_without_obliquity(images, tmp_path):
    grid, (fixed, moving) = images
    start = make_start(grid)
    theirs = AFNILinearTransform.from_ras(start, moving=moving, reference=fixed)["parameters"]
    nodes = apply_affine(_dicom_real_to_card(grid.affine), np.moveaxis(np.indices(grid.shape), 0, -1)) @ LPS
    field = apply_affine(theirs, nodes) - nodes
    nib.save(nib.Nifti1Image(field[:, :, :, None].astype(np.float32), grid.affine), tmp_path / "theirs.nii.gz")
    write_transform(tmp_path / "ours.nii.gz", Transform((Affine(start),)), images=(fixed, moving), tool="afni")
    ours = nib.Nifti1Image.from_filename(tmp_path / "ours.nii.gz")
    np.testing.assert_allclose(ours.get_fdata()[:, :, :, 0], field, atol=5e-3)
    np.testing.assert_allclose(ours.affine, grid.affine, atol=1e-5)
    points = world(grid, INDEX)
    read = read_transform(tmp_path / "theirs.nii.gz", "afni", (fixed, moving)).map_points(points)
    np.testing.assert_allclose(read, apply_affine(start, points), rtol=0, atol=5e-3)


def test_a_registration_comes_back_and_convert_asks_for_the_images(images, tmp_path):
    grid, (fixed, moving) = images
    points, both = world(grid, INDEX), ["-r", fixed, "-m", moving]
    write_transform(tmp_path / "t.h5", registration(grid))

    def convert(source, target, *options):
        return CliRunner().invoke(main, ["convert", str(tmp_path / source), str(tmp_path / target), *options]).stderr

    assert "give both, as the reference and as the moving image" in convert("t.h5", "w.nii.gz", "--to", "afni")
    assert "AFNI has affines" in convert("t.h5", "w.h5", "--to", "afni", *both)
    assert not convert("t.h5", "w.nii.gz", "--to", "afni", *both)
    assert "--from afni -r FIXED -m MOVING" in convert("w.nii.gz", "back.h5")
    assert not convert("w.nii.gz", "back.h5", "--from", "afni", *both)
    back, expected = read_transform(tmp_path / "back.h5"), registration(grid).map_points(points)
    np.testing.assert_allclose(back.map_points(points), expected, rtol=0, atol=1e-4)
    assert "expected (X, Y, Z, 1, 3)" in convert("fixed.nii.gz", "back.h5", "--from", "afni", *both)
    nib.save(nib.Nifti1Image(np.zeros(PLANE.shape, np.uint8), PLANE.affine), tmp_path / "plane.nii.gz")
    plane = ["-r", str(tmp_path / "plane.nii.gz"), "-m", moving]
    assert "AFNI's transforms are of volumes" in convert("w.nii.gz", "back.h5", "--from", "afni", *plane)
