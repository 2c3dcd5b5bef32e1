# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs on which the product once failed, from files, with no option but the preset."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from monai_nodeo import Registration, Settings, register

FAST = Settings.preset("fast", spatial_dims=3)


def error_of(found: Registration, truth: Path, head: Path) -> float:
    """Mean distance in mm of voxels of the head from where an affine of ITK takes them."""
    image = nib.load(head)
    affine, values = image.affine, image.get_fdata()
    index = np.argwhere(values > 0.2 * values.max())[::97]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    transform, lps = sitk.ReadTransform(str(truth)), np.array([-1, -1, 1])
    there = np.array([transform.TransformPoint(point) for point in (points * lps).tolist()]) * lps
    return float(np.linalg.norm(found.points(torch.from_numpy(points)).numpy() - there, axis=1).mean())


def test_a_slab_of_a_head(inputs):
    """Of 76 planes the moving image has 32; before the registration it is 15.3 mm off."""
    head = inputs / "affine_mirror" / "fixed.nii.gz"
    found = register(head, inputs / "partial_fov" / "moving_slab.nii.gz", FAST, device="cpu", handlers=())
    assert error_of(found, inputs / "affine_mirror" / "true_affine.tfm", head) < 1
    assert found.verdict.headline.startswith("Aligned")


@pytest.mark.parametrize("name", ["affine", "6", "8"])
def test_heads_at_the_border_of_the_view(inputs, name):
    """A rotation of 12 degrees once ended in a mirror image."""
    folder = inputs / "affine_mirror"
    head = folder / "fixed.nii.gz"
    found = register(head, folder / f"moving_{name}.nii.gz", FAST, device="cpu", handlers=())
    assert error_of(found, folder / f"true_{name}.tfm", head) < 2
    assert torch.linalg.det(found.start) > 0


def test_hardly_any_foreground(inputs):
    """Three balls, .3 % of the voxels: the field does not depend on their grey values, and they move by 4 mm."""
    pairs = [[inputs / "sparse" / f"sparse_{kind}_{side}.nii.gz" for side in "fm"] for kind in ("bin", "big")]
    found = [register(*pair, FAST, device="cpu", handlers=()) for pair in pairs]
    torch.testing.assert_close(found[0].ddf, found[1].ddf, rtol=0, atol=1e-2)
    assert found[0].ddf.abs().max() < 8


def test_a_heart_in_a_picture_that_stands_still(domains):
    """All but the heart is the same, and what interpolation blurs there is no harm: the deformation is kept."""
    pair = domains / "cine2d_n05"
    free = Settings.preset(None, 2, self_tuning=True, smoothness_weight=0.15, similarity_floor=0.01)
    found = register(pair / "fixed.png", pair / "moving.png", free, device="cpu", handlers=())
    assert found.accepted
    assert found.similarity[1] < found.similarity[0]
