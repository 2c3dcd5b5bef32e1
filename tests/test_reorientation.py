# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Vectors and tensors turn with the space: exact for linear maps, by scipy's polar decomposition."""

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from grids import FLIPPED, OBLIQUE, make_affine
from scipy.linalg import polar

from monai_nodeo.apps.cli import main
from monai_nodeo.files import ImageGrid, save_nifti, write_affine

SHAPE = (9, 11, 13)
TENSOR = np.array([[1.7, 0.2, -0.1], [0.2, 0.4, 0.3], [-0.1, 0.3, 0.6]])
VECTOR = np.array([0.3, -0.8, 0.5])
LOWER = np.tril_indices(3)
MATRICES = {
    "turn": make_affine((0.4, -0.3, 0.7), (1, 1, 1)),
    "shear": make_affine((0.4, -0.3, 0.7), (1, 1, 1))
    @ np.array([[1, 0.3, 0, 0], [0, 0.9, 0.2, 0], [0, 0, 1.2, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("frame", ["ras", "lps"])
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["right-handed", "left-handed"])
def test_directions_turn_with_the_space(affine, kind, frame, tmp_path):
    fixed = ImageGrid(affine, SHAPE)
    moving = (
        ImageGrid(MATRICES[kind] @ affine, SHAPE) if kind == "turn" else ImageGrid(affine * [[9], [9], [9], [1]], SHAPE)
    )
    matrix = moving.affine @ np.linalg.inv(fixed.affine) if kind == "turn" else MATRICES[kind]
    if kind == "shear":  # the middle of the fixed image goes to the middle of the moving one
        middle = np.append((np.array(SHAPE) - 1) / 2, 1)
        matrix = matrix.copy()
        matrix[:3, 3] += (moving.affine @ middle - matrix @ fixed.affine @ middle)[:3]
    write_affine(tmp_path / "t.tfm", matrix)
    save_nifti(tmp_path / "r.nii.gz", np.zeros(SHAPE, np.uint8), fixed)
    flip = np.diag([-1, -1, 1]) if frame == "lps" else np.eye(3)
    back = flip @ polar(matrix[:3, :3])[0].T @ flip  # fixed <- moving
    turned = back @ TENSOR @ back.T
    for name, stored, expected in (("v", VECTOR, back @ VECTOR), ("d", TENSOR[LOWER], turned[LOWER])):
        values = np.broadcast_to(stored, (*SHAPE, 1, len(stored))).astype(np.float32)
        save_nifti(tmp_path / f"{name}.nii.gz", values, moving, "vector" if name == "v" else "symmetric matrix")
        words = ["apply", "-i", tmp_path / f"{name}.nii.gz", "-r", tmp_path / "r.nii.gz", "-t", tmp_path / "t.tfm"]
        words += ["--reorient", frame, "-o", tmp_path / "w.nii.gz"]
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == 0, result.output
        image = nib.load(tmp_path / "w.nii.gz")
        assert image.header["intent_code"] == (1007 if name == "v" else 1005)
        inside = image.get_fdata()[4, 5, 6, 0]
        assert np.abs(expected - stored).max() > 0.1
        np.testing.assert_allclose(inside, expected, atol=1e-5)


def test_what_has_no_direction_is_refused(tmp_path):
    grid = ImageGrid(OBLIQUE, SHAPE)
    write_affine(tmp_path / "t.tfm", np.eye(4))
    save_nifti(tmp_path / "i.nii.gz", np.zeros(SHAPE, np.uint8), grid)
    names = [str(tmp_path / name) for name in ("i.nii.gz", "i.nii.gz", "t.tfm", "w.nii.gz")]
    words = [word for pair in zip(("-i", "-r", "-t", "-o"), names, strict=True) for word in pair]
    result = CliRunner().invoke(main, ["apply", *words, "--reorient", "lps"])
    assert "holds no vectors or tensors" in result.output
    assert not (tmp_path / "w.nii.gz").exists()
