# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scans import centred, make_affine, rotation
from scipy import ndimage
from torch import Tensor

from monai_nodeo.data.align import AlignPaird
from monai_nodeo.data.match import MatchGridd
from monai_nodeo.data.pair import PairError
from monai_nodeo.data.placement import affine_3d, on_grid_of

FIXED = {3: make_affine((1.5, 2.0, 3.5), (0.3, -0.2, 0.4)), 2: make_affine((1.5, 2.0, 4.0), (0.9, -0.4, 0.4))}
SHAPE = {3: (56, 44, 24), 2: (76, 60)}
RADII = np.array([30.0, 38.0, 26.0])  # mm


def head(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """A head without symmetry at points in mm, (D, *any shape): smooth structure within an ellipsoid, 0 outside."""
    rng = np.random.default_rng(seed)
    dims = len(points)
    inside = (points**2 / np.reshape(RADII[:dims] ** 2, (-1, *[1] * (points.ndim - 1)))).sum(0) < 1
    values = np.full(points.shape[1:], 0.6)
    for _ in range(12):
        centre = rng.uniform(-0.6, 0.6, dims) * RADII[:dims]
        offset = points - np.reshape(centre, (-1, *[1] * (points.ndim - 1)))
        values += rng.choice([-0.35, 0.35]) * np.exp(-(offset**2).sum(0) / (2 * rng.uniform(5, 9) ** 2))
    return np.where(inside, values.clip(0.1, 1), 0)


def true_affine(dims: int, angle: float, scales: Sequence[float], shift: Sequence[float]) -> np.ndarray:
    """Fixed point -> moving point; within the plane of the fixed slice for D = 2."""
    turn = rotation(angle, 2) @ (rotation(0.6 * angle, 0) if dims == 3 else np.eye(3))
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([*scales[:dims], *[1.0] * (3 - dims)])
    matrix[:3, 3] = [*shift[:dims], *[0] * (3 - dims)]
    if dims == 2:
        plane = np.eye(4)
        plane[:3, :3] = FIXED[2][:3, :3] / np.linalg.norm(FIXED[2][:3, :3], axis=0)
        matrix = plane @ matrix @ plane.T
    return matrix


def make_pair(dims: int, truth: np.ndarray, moving_affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, MetaTensor]:
    """The head in its own coordinates around the world's origin, and the moving one where the truth takes it."""
    frame = np.eye(3)
    if dims == 2:
        frame = FIXED[2][:3, :2] / np.linalg.norm(FIXED[2][:3, :2], axis=0)
    fixed_affine = centred(FIXED[dims], SHAPE[dims])
    pair = {}
    for key, affine, size, back in (
        ("fixed", fixed_affine, SHAPE[dims], np.eye(4)),
        ("moving", moving_affine, shape, np.linalg.inv(truth)),
    ):
        index = np.indices(size).reshape(dims, -1)
        index = np.vstack([index, np.zeros((3 - dims, index.shape[1])), np.ones(index.shape[1])])
        points = (frame.T @ (back @ affine @ index)[:3]).reshape(dims, *size)
        values = torch.from_numpy(head(points)).float()[None]
        pair[key] = MetaTensor(values, affine=torch.from_numpy(affine))
    return pair


def largest_error(found: Tensor, truth: np.ndarray, fixed: MetaTensor) -> float:
    """Of the points inside the head, in mm."""
    dims = fixed.ndim - 1
    index = np.stack(fixed.array[0].nonzero())
    index = np.vstack([index, np.zeros((3 - dims, index.shape[1])), np.ones(index.shape[1])])
    points = affine_3d(fixed).numpy() @ index
    return float(np.linalg.norm(((found.numpy() - truth) @ points)[:3], axis=0).max())


MOVING = {
    3: (make_affine((-2.2, 1.4, 2.0), (0.1, 0.5, -0.9)), (46, 66, 52)),
    2: (FIXED[2] @ make_affine((0.8, 0.9, 1.0), (0, 0, 0.5)), (84, 72)),
}


def moving_grid(dims: int, truth: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    affine, shape = MOVING[dims]
    return centred(affine, shape, tuple((truth @ [4.0, -3.0, 2.0 if dims == 3 else 0, 1])[:3])), shape


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_known_affine_is_found_between_any_two_grids(dims, inverted) -> None:
    truth = true_affine(dims, 0.45, (1.1, 0.9, 1.05), (60, -45, 30))
    if dims == 2:
        truth[:3, 3] = FIXED[2][:3, :2] @ (20, -12)
    pair = make_pair(dims, truth, *moving_grid(dims, truth))
    if inverted:
        pair["moving"] = MetaTensor((1 - pair["moving"].as_tensor()) ** 1.5, affine=pair["moving"].affine)
    found = AlignPaird("affine")(pair)["initial_affine"]
    assert found.shape == (4, 4)
    assert found.dtype == torch.float64
    assert largest_error(found, truth, pair["fixed"]) < 2.0  # mm, of voxels of 1.5 x 2 x 3.5


def test_the_same_pair_gives_the_same_start() -> None:
    truth = true_affine(2, 0.2, (1, 1, 1), (0, 0, 0))
    pair = make_pair(2, truth, *moving_grid(2, truth))
    first, again = (AlignPaird("affine")(pair)["initial_affine"] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("dims", [2, 3])
def test_rigid_has_no_scale_and_moments_no_rotation(dims) -> None:
    truth = true_affine(dims, -0.35, (1, 1, 1), (8, 5, -6))
    pair = make_pair(dims, truth, *moving_grid(dims, truth))
    rigid = AlignPaird("rigid")(pair)["initial_affine"]
    torch.testing.assert_close(rigid[:3, :3] @ rigid[:3, :3].T, torch.eye(3, dtype=torch.float64))
    assert largest_error(rigid, truth, pair["fixed"]) < 2.0
    moments = AlignPaird("moments")(pair)["initial_affine"]
    torch.testing.assert_close(moments[:3, :3], torch.eye(3, dtype=torch.float64))
    np.testing.assert_allclose(moments[:3, 3], truth[:3, 3], atol=1.0)


def test_the_start_is_applied_in_the_one_interpolation_of_the_moving_image() -> None:
    truth = true_affine(3, 0.3, (1.05, 0.95, 1), (25, 10, -12))
    pair = make_pair(3, truth, *moving_grid(3, truth))
    start = torch.from_numpy(truth)
    matched = MatchGridd()(pair | {"initial_affine": start})["moving_input"]

    # By ITK from its own point of view: LPS, and a transform of points.
    flip = np.diag([-1.0, -1, 1])
    images = {}
    for key, image in pair.items():
        itk = sitk.GetImageFromArray(image.array[0].T)
        lps = flip @ np.asarray(image.affine)[:3]
        spacing = np.linalg.norm(lps[:, :3], axis=0)
        itk.SetSpacing(spacing.tolist())
        itk.SetDirection((lps[:, :3] / spacing).ravel().tolist())
        itk.SetOrigin(lps[:, 3].tolist())
        images[key] = itk
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((flip @ truth[:3, :3] @ flip).ravel().tolist())
    transform.SetTranslation((flip @ truth[:3, 3]).tolist())
    expected = sitk.GetArrayFromImage(sitk.Resample(images["moving"], images["fixed"], transform)).T
    assert np.abs(matched.array[0] - expected).max() < 1e-4
    # and the heads are on one another
    inside = ndimage.binary_erosion(pair["fixed"].array[0] > 0, iterations=2)
    assert np.abs(matched.array[0] - pair["fixed"].array[0])[inside].mean() < 0.02


def test_masks_keep_a_lesion_out_of_the_alignment() -> None:
    truth = true_affine(3, 0.2, (1, 1, 1), (10, -8, 6))
    pair = make_pair(3, truth, *moving_grid(3, truth))
    away = pair["moving"].as_tensor().clone()
    mask = torch.ones_like(away)
    away[:, :, 46:], mask[:, :, 46:] = 2.0, 0.0  # a bright slab across the head
    pair["moving"] = MetaTensor(away, affine=pair["moving"].affine)
    pair["moving_mask"] = MetaTensor(mask, affine=pair["moving"].affine)
    found = AlignPaird("rigid")(pair)["initial_affine"]
    assert largest_error(found, truth, pair["fixed"]) < 2.5


@pytest.mark.parametrize("ending", ["tfm", "mat", "txt", "h5"])
def test_a_given_file_is_read_as_itk_wrote_it(tmp_path, ending) -> None:
    transform = sitk.AffineTransform(3)
    transform.SetCenter((3.0, -4.0, 5.0))
    transform.SetMatrix(rotation(0.3, 1).ravel().tolist())
    transform.SetTranslation((7.0, 8.0, -9.0))
    sitk.WriteTransform(transform, str(tmp_path / f"start.{ending}"))
    pair = make_pair(2, np.eye(4), FIXED[2], SHAPE[2])
    found = AlignPaird(tmp_path / f"start.{ending}")(pair)["initial_affine"]
    point = np.array([1.0, 2.0, 3.0])
    there = (found.numpy() @ [*point, 1])[:3] * (-1, -1, 1)
    np.testing.assert_allclose(there, transform.TransformPoint((point * (-1, -1, 1)).tolist()), atol=1e-6)


def test_no_start_adds_nothing() -> None:
    pair = make_pair(2, np.eye(4), FIXED[2], SHAPE[2])
    assert AlignPaird()(pair) == pair


def test_starts_that_cannot_be(tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match=r"'afine' is none of moments, rigid, affine and no linear transform"):
        AlignPaird("afine")
    (tmp_path / "bad.tfm").write_text("nothing")
    with pytest.raises(ValueError, match=r"bad\.tfm"):
        AlignPaird(tmp_path / "bad.tfm")
    flat = MetaTensor(torch.ones(1, 20, 22, 24))
    with pytest.raises(PairError, match="moving: nothing differs from the background"):
        AlignPaird("moments")({"fixed": MetaTensor(torch.rand(1, 20, 22, 24)), "moving": flat})
    large = sitk.ScaleTransform(3, (4.0, 1.0, 1.0))
    sitk.WriteTransform(large, str(tmp_path / "large.tfm"))
    with caplog.at_level(logging.WARNING):
        AlignPaird(tmp_path / "large.tfm")({"fixed": flat, "moving": flat})
    assert "scales by 4 x 1 x 1" in caplog.text


def test_no_overlap_after_the_start_is_said(tmp_path) -> None:
    pair = make_pair(3, np.eye(4), centred(FIXED[3], SHAPE[3]), SHAPE[3])
    start = torch.eye(4, dtype=torch.float64)
    start[0, 3] = 500
    with pytest.raises(PairError, match=r"after the affine start x .* do not overlap.*give another initial_transform"):
        MatchGridd()(pair | {"initial_affine": start})


def test_real_heads_in_scanner_space(oasis) -> None:
    pair, labels = {}, {}
    for side, subject in (("fixed", "0001"), ("moving", "0002")):
        folder = oasis / "oasis3d" / subject
        for kind, found in (("norm", pair), ("seg35", labels)):
            image = nib.Nifti1Image.from_filename(folder / f"{kind}.nii.gz")
            values = np.asanyarray(image.dataobj)[::2, ::2, ::2].astype(np.float32)  # half the voxels a side, for speed
            found[side] = MetaTensor(torch.from_numpy(values)[None], affine=image.affine @ np.diag([2.0, 2, 2, 1]))
    start = AlignPaird("affine")(pair)["initial_affine"]
    label = on_grid_of(labels["fixed"], labels["moving"], start, mode="nearest").array.ravel()
    truth = labels["fixed"].array.ravel()
    counts = [np.bincount(x.astype(int), minlength=36) for x in (label[label == truth], label, truth)]
    dice = (2 * counts[0] / (counts[1] + counts[2]))[1:36]
    assert dice.mean() > 0.47  # .04 before; .46 for the pair as the data set aligned it
