# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import socket
import sys
from functools import cache

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_nodeo.data import examples
from monai_nodeo.data.examples import ExamplePair, example_pair, write_pair
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import warp

COARSE = {2: 2.0, 3: 4.0}
made = cache(example_pair)


@pytest.fixture(params=[2, 3])
def pair(request) -> ExamplePair:
    return made(request.param, COARSE[request.param])


def warped(image, ddf, mode="bilinear"):
    return warp(torch.from_numpy(image)[None, None].float(), torch.from_numpy(ddf)[None], mode)[0, 0].numpy()


def test_deformation_is_smooth_and_of_a_realistic_size(pair):
    head = pair.fixed_label > 0
    millimetres = np.linalg.norm(pair.ddf, axis=0) * pair.spacing[0]
    assert 3 < millimetres[head].mean() < 4
    assert millimetres.max() < 12
    assert jacobian_determinant(torch.from_numpy(pair.ddf)[None]).min() > 0.2
    for axis in range(1, pair.ddf.ndim):  # nothing leaves the image
        assert np.abs(pair.ddf.take((0, -1), axis)).max() < 1e-6
    # the template's lower end is cut at the neck, all other sides are empty
    assert pair.moving[0].max() == pair.moving[-1].max() == pair.moving[:, 0].max() == pair.moving[:, -1].max() == 0


def test_true_displacement_undoes_the_deformation(pair):
    """The contrast differs, so the labels say it: little overlap before, nearly all after."""
    before, after = [], []
    for label in (1, 2):
        fixed = (pair.fixed_label == label).astype(np.float32)
        moving = (pair.moving_label == label).astype(np.float32)
        brought_back = warped(moving, pair.ddf) > 0.5
        for dice, other in ((before, moving), (after, brought_back)):
            dice.append(2 * (fixed * other).sum() / (fixed.sum() + other.sum()))
    assert max(before) < 0.85
    assert min(after) > 0.86
    head = pair.fixed_label > 0
    correlation = [np.corrcoef(pair.fixed[head], m[head])[0, 1] for m in (pair.moving, warped(pair.moving, pair.ddf))]
    assert correlation[0] < 0.8 < 0.9 < correlation[1]


def test_seed_decides():
    first, again, other = (example_pair(2, 3.0, seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.fixed, other.fixed)
    assert np.abs(first.ddf - other.ddf).max() > 1


def test_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    examples._template_maps.cache_clear()
    example_pair(2, 4.0)


def test_absent_nilearn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    examples._template_maps.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'monai-nodeo\[demo\]'"):
        example_pair(2)


@pytest.mark.parametrize(("arguments", "message"), [((4,), "expected 2 or 3"), ((2, 0.5), "at least")])
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        example_pair(*arguments)


def test_written_files_hold_the_pair(pair, tmp_path):
    row = write_pair(pair, tmp_path / "new" / "folder")
    assert set(row) == {"fixed", "moving", "fixed_label", "moving_label"}
    for name, path in row.items():
        image = nib.load(path)
        assert image.ndim == 3
        np.testing.assert_array_equal(np.squeeze(image.get_fdata()), getattr(pair, name))
        np.testing.assert_allclose(image.affine, pair.affine)
        assert image.get_data_dtype() == getattr(pair, name).dtype
        assert image.header.get_xyzt_units()[0] == "mm"
