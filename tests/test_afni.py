# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""AFNI's affines and warps between oblique images, judged by nitransforms."""

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from grids import FLIPPED, OBLIQUE, PLANE, VOLUME, make_affine, make_image, make_start, registration, world
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


def test_without_conversion_they_are_refused_where_an_image_is_oblique(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    straight, oblique = np.diag([-1.2, 0.9, 2.5, 1.0]), make_affine((0.0, 0.0, 0.001), (-1.2, 0.9, 2.5))
    for name, affine in (("straight", straight), ("oblique", oblique)):
        oblique[:3, 3] = straight[:3, 3] = -10, -10, -20
        nib.save(nib.Nifti1Image(np.digitize(make_image(VOLUME), [500]).astype(np.uint8), affine), f"{name}.nii.gz")
        write_transform(f"{name}.aff12.1D", Transform((Affine(np.eye(4)),)))
        images = (f"{name}.nii.gz", "straight.nii.gz")
        write_transform(f"{name}_warp.nii.gz", Transform((Affine(np.eye(4)),)), images=images, tool="afni")

    def said(transform, fixed, moving, *command):
        files = ["-r", f"{fixed}.nii.gz", "-i", f"{moving}.nii.gz", "-o", "out.nii.gz"]
        result = CliRunner().invoke(main, ["apply", "-t", transform, *files])
        labels = ["--fixed-label", f"{fixed}.nii.gz", "--moving-label", f"{moving}.nii.gz"]
        judged = CliRunner().invoke(main, ["evaluate", "-t", transform, *labels])
        assert judged.stderr == result.stderr
        assert result.exit_code == (1 if result.stderr else 0)
        return result.stderr

    advice = "convert it with  monai-nodeo convert FROM TO.h5 --from afni -r FIXED -m MOVING.\n"
    for affine in ("straight.aff12.1D", "[straight.aff12.1D,1]"):
        assert said(affine, "straight", "straight") == ""
        for sides, which in ((("oblique", "straight"), "fixed"), (("straight", "oblique"), "moving")):
            expected = f"straight.aff12.1D: a transform of AFNI (the {which} image is oblique"
            assert expected in said(affine, *sides)
            assert said(affine, *sides).endswith(advice)
    assert said("straight_warp.nii.gz", "straight", "straight") == ""
    assert said("straight_warp.nii.gz", "oblique", "straight") == ""  # made for a straight one, and points are points
    assert "the moving image is oblique" in said("straight_warp.nii.gz", "straight", "oblique")
    assert "its grid is oblique" in said("oblique_warp.nii.gz", "straight", "straight")
    register = ["register", "-f", "oblique.nii.gz", "-m", "straight.nii.gz", "-o", "out", "--init", "straight.aff12.1D"]
    assert "the fixed image is oblique" in CliRunner().invoke(main, register).stderr
