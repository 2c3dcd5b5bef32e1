# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from scans import SLICE, VOLUME, load, make_affine, refuse, smooth
from synthetic import smooth_ddf

from monai_nodeo.data import match
from monai_nodeo.losses.landmarks import landmark_errors, landmark_loss

SHAPES = [(25, 21), (13, 17, 11)]
FIXED = make_affine((1.2, 0.9, 2.5), (0.3, -0.2, 0.4), (12.5, -30.25, 41.75))
MOVING = make_affine((0.8, 1.1, 3.0), (0.2, -0.1, 0.3), (12, -31, 41))
START = torch.tensor([[1.02, 0.05, 0, 0.5], [-0.05, 0.97, 0, 1], [0, 0, 1.05, -2], [0, 0, 0, 1]], dtype=torch.float64)


def random_voxels(shape: tuple[int, ...], count: int = 7) -> np.ndarray:
    """(count, D), within the image."""
    return np.random.default_rng(1).uniform(1, np.array(shape) - 2, (count, len(shape)))


def write_points(path: Path, voxels: np.ndarray, affine: np.ndarray) -> str:
    """Voxels (N, 3) as ANTs has them: LPS mm."""
    lps = (voxels @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)
    rows = [f"{x:.8f},{y:.8f},{z:.8f},0" for x, y, z in lps]
    path.write_text("\n".join(["x,y,z,t", *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_true_displacement_has_no_error(shape):
    ddf = smooth_ddf(shape, largest=3, sigma=3)[None]
    voxels = torch.from_numpy(random_voxels(shape).round()).long()
    moved = voxels + ddf[0][(slice(None), *voxels.T)].T
    landmarks = torch.stack([voxels.float(), moved], dim=1)[None]
    torch.testing.assert_close(landmark_errors(ddf, landmarks), torch.zeros(1, 7, len(shape)), atol=1e-4, rtol=0)
    before = landmark_errors(torch.zeros_like(ddf), landmarks)
    torch.testing.assert_close(before[0], moved - voxels)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_the_mean_squared_distance_in_mm_and_moves_the_field(shape):
    spacing = (2.0, 0.5, 3.0)[: len(shape)]
    fixed = torch.from_numpy(random_voxels(shape))
    offset = torch.tensor([1.0, -2.0, 0.5])[: len(shape)]
    landmarks = torch.stack([fixed, fixed + offset], dim=1)[None]
    ddf = torch.zeros(1, len(shape), *shape, requires_grad=True)
    loss = landmark_loss(ddf, landmarks, spacing)
    assert loss.item() == pytest.approx(sum((o * s) ** 2 for o, s in zip(offset.tolist(), spacing, strict=True)), 1e-5)
    loss.backward()
    assert ddf.grad is not None
    pulled = ddf.grad.flatten(2).sum(-1)[0]
    assert torch.equal(pulled.sign(), -offset.sign())
    with pytest.raises(ValueError, match="expected"):
        landmark_errors(ddf, landmarks[:, :, :1])


@pytest.mark.parametrize("start", [None, START])
def test_points_of_both_files_come_to_the_fixed_grid(save, tmp_path, start):
    fixed, moving = save("f.nii.gz", smooth(VOLUME, 1), FIXED), save("m.nii.gz", smooth(VOLUME, 2), MOVING)
    voxels = random_voxels(VOLUME), random_voxels(VOLUME)[::-1]
    paths = {
        "fixed_landmarks": write_points(tmp_path / "f.csv", voxels[0], FIXED),
        "moving_landmarks": write_points(tmp_path / "m.csv", voxels[1], MOVING),
    }
    pair = load(fixed, moving, **paths)
    landmarks = match(pair, start).landmarks
    assert landmarks.shape == (7, 2, 3)
    np.testing.assert_allclose(landmarks[:, 0], voxels[0], atol=1e-4)
    # forward again: from the fixed grid through the start into the moving image
    through = np.linalg.inv(MOVING) @ (np.eye(4) if start is None else start.numpy()) @ FIXED
    partners = landmarks[:, 1].numpy() @ through[:3, :3].T + through[:3, 3]
    np.testing.assert_allclose(partners, voxels[1], atol=1e-4)
    # the same points in memory are RAS mm
    again = load(fixed, moving, fixed_landmarks=pair.fixed.landmarks.numpy(), moving_landmarks=pair.moving.landmarks)
    assert torch.equal(match(again, start).landmarks, landmarks)


def test_points_of_a_slice_lie_in_its_plane(save, tmp_path, caplog):
    fixed = save("f.nii.gz", smooth(SLICE, 1), FIXED)
    flat = np.column_stack([random_voxels(SLICE[:2]), np.zeros(7)])
    path = write_points(tmp_path / "f.csv", flat + (0, 0, 0.2), FIXED)
    pair = match(load(fixed, fixed, fixed_landmarks=path, moving_landmarks=path))
    np.testing.assert_allclose(pair.landmarks, np.stack([flat[:, :2]] * 2, axis=1), atol=1e-4)
    assert caplog.messages == []
    away = write_points(tmp_path / "away.csv", flat + (0, 0, 3), FIXED)
    load(fixed, fixed, fixed_landmarks=path, moving_landmarks=away)
    (said,) = caplog.messages
    assert f"moving_landmarks {away}: 7 of 7 points lie off the plane of the slice, by up to 7.5 mm" in said


def test_points_that_do_not_fit(save, tmp_path):
    image = save("f.nii.gz", smooth(VOLUME, 1), FIXED)
    voxels = random_voxels(VOLUME)
    good, short = (write_points(tmp_path / f"{n}.csv", voxels[:n], FIXED) for n in (7, 5))
    message = refuse(image, image, fixed_landmarks=good, moving_landmarks=short)
    assert f"moving_landmarks {short} has 5 points and fixed_landmarks {good} has 7" in message
    ras = tmp_path / "ras.csv"
    ras.write_text("x,y,z\n12.5,-30.25,41.75\n-12.5,30.25,41.75\n")
    message = refuse(image, image, fixed_landmarks=good, moving_landmarks=str(ras))
    assert f"moving_landmarks {ras}: 1 of 2 points lie outside the image {image}, the first is point 1" in message
    assert "change the sign of x and y" in message
    assert "came without moving_landmarks" in refuse(image, image, fixed_landmarks=good)
    assert "there is no such file" in refuse(image, image, fixed_landmarks=good, moving_landmarks="gone.csv")
    flat = np.zeros((7, 2))
    assert "fixed_landmarks in memory: shape (7, 2), expected finite points (N, 3)" in refuse(
        image, image, fixed_landmarks=flat, moving_landmarks=flat
    )
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "expected x,y,z" in refuse(image, image, fixed_landmarks=good, moving_landmarks=str(tmp_path / "bad.csv"))
