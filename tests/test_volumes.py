# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Volumes of structures before and after, by the integral of the Jacobian determinant."""

import csv
import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from finished import save_result
from grids import make_affine
from monai.data import MetaTensor
from synthetic import smooth_ddf, smooth_image, voxels

from monai_nodeo.apps.cli import main
from monai_nodeo.apps.volumes import ALL, label_volumes
from monai_nodeo.data import PairError
from monai_nodeo.geometry.jacobian import cell_volumes
from monai_nodeo.registration import Registration

SHAPES = [(29, 24), (15, 17, 13)]
RATE = -0.1  # of the logarithm of a length
SIDES = (1.5, 2.0, 1.0)


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_volumes_of_cells_are_exact(shape):
    matrix = torch.eye(len(shape)) + 0.2 * torch.randn(len(shape), len(shape))
    linear = torch.einsum("ij,bj...->bi...", matrix.double() - torch.eye(len(shape)), voxels(shape)) + 3
    torch.testing.assert_close(
        cell_volumes(linear),
        torch.full_like(linear[:, 0], float(torch.linalg.det(matrix.double())))[
            (slice(None), *[slice(1, None)] * len(shape))
        ],
    )
    # what is lost inside a border that stays is gained inside it
    ddf = smooth_ddf(shape, largest=1.5, sigma=2.0).double()[None]
    edge = torch.zeros(shape, dtype=torch.bool)
    edge[(slice(1, -1),) * len(shape)] = True
    sizes = cell_volumes(ddf * edge)
    assert sizes.std() > 0.05
    assert sizes.sum().item() == pytest.approx(sizes.numel(), rel=1e-12)


@pytest.fixture(params=SHAPES, ids=["2D", "3D"])
def shrunken(request, tmp_path):
    """The folder of a registration that shrinks everything about the middle, and a map of two labels."""
    shape = request.param
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(-1, *[1] * len(shape))
    place = voxels(shape, torch.float32)[0] - centre
    images = {"fixed": smooth_image(shape)[0].numpy(), "moving": smooth_image(shape, 1)[0].numpy()}
    turn = make_affine((0, 0, 0.1), (1.02, 1, 1))
    turn[:3, 3] = 0
    folder = save_result(tmp_path, images, RATE * place, make_affine((0, 0, 0.4), SIDES), start=turn)
    label = (place.norm(dim=0) < 5).float() + (place.norm(dim=0) < 3).float()
    return folder, label[None], 1.02 * math.exp(len(shape) * RATE)


def test_labels_shrink_as_the_flow_does(shrunken):
    folder, label, scale = shrunken
    found = Registration.load(folder)
    placed = MetaTensor(label, affine=torch.from_numpy(found.flow.grid.affine.copy()))
    items = label_volumes(found, placed, [found.map, found.map.inverse(found.flow.grid)], warped=True)
    assert [item.label for item in items] == [1, 2, ALL]
    sizes = [float((label == k).sum()) * math.prod(SIDES[: label.ndim - 1]) for k in (1, 2)]
    assert [item.fixed for item in items] == pytest.approx([*sizes, sum(sizes)])
    for item in items:
        assert item.change == pytest.approx(100 * (scale - 1), abs=0.02)
        assert item.warped_change == pytest.approx(item.change, abs=6)  # of voxels that are few
        assert item.deviation > 5
    with pytest.raises(ValueError, match="no voxel of the label map"):
        label_volumes(found, MetaTensor(torch.zeros_like(label), affine=placed.affine))
    with pytest.raises(PairError, match="labels"):
        label_volumes(found, MetaTensor(label[:, 1:], affine=placed.affine))


def test_the_command_writes_a_table(shrunken, save):
    folder, label, scale = shrunken
    grid = Registration.load(folder).flow.grid
    path = save("label.nii.gz", label[0].numpy().reshape(grid.shape), grid.affine)
    done = CliRunner().invoke(main, ["volumes", str(folder), "--labels", path])
    assert done.exit_code == 0, done.output
    with (folder / "volumes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1", "2", "all"]
    assert [float(row["change_percent"]) for row in rows] == pytest.approx([100 * (scale - 1)] * 3, abs=0.02)
    assert f"label 2: {rows[1]['change_percent']} %" in done.output
    failed = CliRunner().invoke(main, ["volumes", str(folder)])
    assert failed.exit_code == 2
    assert "give --labels" in failed.output


def test_atrophy_of_a_known_size_is_found_in_a_real_brain(oasis):
    spec = spec_from_file_location("longitudinal", Path(__file__).parents[1] / "benchmarks" / "longitudinal.py")
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    changed = benchmark.row(oasis, 2, 1, symmetric=True, self_tuning=False)
    assert changed["whole brain"]["true"] < -0.2
    assert abs(changed["whole brain"]["bias"]) < 0.15
    assert changed["ventricles"]["found"] > 4
    assert changed["hippocampi"]["found"] < -1.5
