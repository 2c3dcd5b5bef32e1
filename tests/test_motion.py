# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from grids import FLIPPED, OBLIQUE
from scipy.spatial.transform import Rotation

from monai_nodeo import correct_motion
from monai_nodeo.apps.cli import main
from monai_nodeo.data import PairError

SHAPE = (30, 26, 22)
WAYS = np.array(  # mm, degrees
    [[0, 0, 0, 0, 0, 0], [0.7, -0.4, 0.3, 1, -0.5, 2], [-1.2, 0.9, 0.2, -2, 1.5, -1], [3, -2, 2.5, 5, -4, 6]], float
)
WAYS[:, 3:] = np.radians(WAYS[:, 3:])


def middle(affine: np.ndarray) -> np.ndarray:
    return affine[:3] @ [*((n - 1) / 2 for n in SHAPE), 1]


def true_poses(affine: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(WAYS), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("xyz", WAYS[:, 3:]).as_matrix()
    poses[:, :3, 3] = middle(affine) + WAYS[:, :3] - poses[:, :3, :3] @ middle(affine)
    return poses


def scan(affine: np.ndarray, noise: float = 2.0) -> np.ndarray:
    """(*SHAPE, T): some blobs, in closed form, that move with the ways above."""
    random = np.random.default_rng(4)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    blobs = random.uniform(0.2, 0.8, (25, 3)) * (SHAPE - np.ones(3))
    heights = random.uniform(200, 600, 25)
    points = np.indices(SHAPE).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    frames = []
    for pose in true_poses(affine):
        there = (blobs @ affine[:3, :3].T + affine[:3, 3]) @ pose[:3, :3].T + pose[:3, 3]
        away = np.square(points[:, None] - there).sum(-1) / (2.5 * size.mean()) ** 2
        frames.append((np.exp(-away) @ heights).reshape(SHAPE))
    return np.stack(frames, -1) + noise * random.standard_normal((*SHAPE, len(frames)))


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
@pytest.mark.parametrize("reference", ["mean", 2])
def test_the_pose_of_every_frame_is_found_on_any_grid(affine, reference):
    motion = correct_motion(nib.Nifti1Image(scan(affine).astype(np.float32), affine), reference)
    true = true_poses(affine)
    for found, expected in zip(motion.poses, true, strict=True):
        apart = np.linalg.inv(expected @ np.linalg.inv(true[2])) @ found @ np.linalg.inv(motion.poses[2])
        assert np.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude()) < 0.05
        assert np.linalg.norm(apart[:3, :3] @ middle(affine) + apart[:3, 3] - middle(affine)) < 0.05
    left = (motion.corrected(1) - motion.corrected(2))[6:-6, 6:-6, 6:-6]
    assert left.std() < 4  # each has noise of 2
    if reference == 2:
        assert np.array_equal(motion.poses[2], np.eye(4))


def test_parameters_and_framewise_displacement_are_those_of_the_head():
    motion = correct_motion(nib.Nifti1Image(scan(OBLIQUE).astype(np.float32), OBLIQUE), 0)
    np.testing.assert_allclose(motion.parameters, WAYS, atol=1e-3 * 50)
    np.testing.assert_allclose(motion.parameters[:, 3:], WAYS[:, 3:], atol=1e-3)
    expected = np.abs(np.diff(WAYS, axis=0)) @ [1, 1, 1, 50, 50, 50]
    assert np.isnan(motion.framewise_displacement[0])
    np.testing.assert_allclose(motion.framewise_displacement[1:], expected, atol=0.2)


def test_gain_offset_and_a_part_that_lights_up_are_no_motion():
    frames = scan(OBLIQUE)[..., :1].repeat(3, -1)
    frames[..., 1] = 40 + 1.3 * frames[..., 1]
    frames[8:13, 14:19, 8:12, 2] *= 1.3
    motion = correct_motion(nib.Nifti1Image(frames.astype(np.float32), OBLIQUE), 0)
    assert np.abs(motion.parameters[:, :3]).max() < 0.01
    assert np.abs(motion.parameters[:, 3:]).max() < 2e-4


def test_the_command_writes_the_series_a_table_of_bids_and_transforms_of_itk(tmp_path):
    series = nib.Nifti1Image(np.rint(scan(OBLIQUE)).astype(np.int16), OBLIQUE)
    series.header.set_xyzt_units("mm", "sec")
    series.header["pixdim"][4] = 2.2
    nib.save(series, tmp_path / "bold.nii.gz")
    out = tmp_path / "out"
    (out / "transforms").mkdir(parents=True)
    (out / "transforms" / "0009.tfm").touch()  # of an earlier, longer series
    done = CliRunner().invoke(main, ["motion", str(tmp_path / "bold.nii.gz"), "-o", str(out), "--reference", "0"])
    assert done.exit_code == 0, done.output
    assert not (out / "transforms" / "0009.tfm").exists()
    corrected = nib.load(out / "corrected.nii.gz")
    assert corrected.shape == series.shape
    assert corrected.get_data_dtype() == np.int16
    assert corrected.header.get_zooms()[3] == pytest.approx(2.2)
    assert corrected.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(corrected.affine, OBLIQUE, atol=1e-4)
    np.testing.assert_array_equal(corrected.dataobj[..., 0], series.dataobj[..., 0])
    assert nib.load(out / "mean.nii.gz").shape == SHAPE
    with (out / "motion.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    assert [*rows[0]] == [*names, "framewise_displacement"]
    assert rows[0]["framewise_displacement"] == "n/a"
    assert [float(rows[3][name]) for name in names] == pytest.approx(WAYS[3], abs=0.05)
    told = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    assert {told[name]["Units"] for name in names} == {"mm", "rad"}
    frames = sitk.ReadImage(str(tmp_path / "bold.nii.gz"), sitk.sitkFloat32)
    way = sitk.ReadTransform(str(out / "transforms" / "0003.tfm"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(frames[:, :, :, 3], frames[:, :, :, 0], way, sitk.sitkBSpline)).T
    inner = (slice(7, -7),) * 3
    np.testing.assert_allclose(corrected.dataobj[..., 3][inner], theirs[inner], atol=1.0)


@pytest.mark.parametrize(
    ("change", "reference", "message"),
    [
        (lambda frames: [x[:-1] if n else x for n, x in enumerate(frames)], 0, "not on the grid of"),
        (lambda frames: [x * n for n, x in enumerate(frames)], 0, "0 of the series: all voxels are 0"),
        (
            lambda frames: [x[..., 3] for x in frames],
            0,
            "one channel. .* are for monai-nodeo sequence",
        ),
        (lambda frames: [x[20:25, 20:25, 10:15] for x in frames], 0, r"\(5, 5, 5\) voxels show too little"),
        (lambda frames: frames, 4, "there is no frame 4; the 4 frames are numbered from 0"),
        (lambda frames: frames, "median", "reference 'median': expected the number of a frame, or mean"),
    ],
)
def test_what_is_wrong_is_told(change, reference, message):
    frames = change(list(np.moveaxis(scan(OBLIQUE, noise=0), -1, 0)))
    with pytest.raises(PairError, match=message):
        correct_motion(frames, reference)
