# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Templates: mean shapes of known ones, and the way from files to files."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cohorts import as_it_was, stamps
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from synthetic import quick_settings, smooth_ddf, smooth_image

from monai_nodeo.apps import build_template
from monai_nodeo.apps.cli import main
from monai_nodeo.apps.cohort.job import register_rows
from monai_nodeo.apps.templates.average import sharpened
from monai_nodeo.apps.templates.shape import mean_flow, mean_stretch, to_mean_shape
from monai_nodeo.data.lists import DataListError, group
from monai_nodeo.data.pair import PairError
from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import Flow, RungeKutta, VelocityField

SHAPE = (28, 34)
PLACE = np.diag([1.0, 1.5, 2.0, 1.0])
QUICK = ("--device", "cpu", "--rounds", "2", "--init", "none", "--set", "iterations=[3,3]")


def flow_on(nodes: ImageGrid, grid: ImageGrid, seed: int, keyframes: int = 1, size: float = 1.0) -> Flow:
    """The flow of a smooth velocity whose nodes are anywhere, of at most ``size`` nodes of [-1, 1] / 2."""
    images = torch.stack([smooth_ddf(nodes.spatial_shape, seed + k, size, 3.0) for k in range(keyframes)])
    scale = torch.tensor([2 / (n - 1) for n in nodes.spatial_shape]).view(-1, *[1] * nodes.spatial_dims)
    return Flow(VelocityField.of(images * scale), RungeKutta(), nodes, grid)


@pytest.mark.parametrize("shape", [(28, 34, 1), (14, 16, 12)])
def test_flow_on_another_grid_is_the_same_flow(shape):
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = 4, -7, 3
    grid = ImageGrid(affine, shape)
    coarse = affine @ np.diag([2.0, 2.0, 2.0 if shape[2] > 1 else 1.0, 1.0])
    nodes = ImageGrid(coarse, tuple((n + 1) // 2 for n in shape))
    flow = flow_on(nodes, grid, 0, keyframes=2)
    torch.testing.assert_close(flow.on(grid).displacement(), flow.displacement(), atol=2e-3, rtol=0)
    cropped = affine.copy()
    cropped[:3, 3] += affine[:3, 0] * 3  # what is outside its own nodes goes on like their border
    part = flow_on(ImageGrid(cropped, (shape[0] - 6, *shape[1:])), grid, 1)
    torch.testing.assert_close(part.on(grid).displacement(), part.displacement(), atol=2e-3, rtol=0)


def test_mean_stretch_is_that_of_the_shape_alone():
    centre = torch.tensor([10.0, -20, 5]).double()
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (10, -5, 30), degrees=True).as_matrix())
    turn[:3, :3] *= 1.2
    turn[:3, 3] = centre - turn[:3, :3] @ centre + torch.tensor([3.0, 2, 1])
    back = turn.clone()
    back[:3, :3] = torch.linalg.inv(turn[:3, :3])
    torch.testing.assert_close(mean_stretch([turn, back], centre), torch.eye(4).double(), atol=1e-9, rtol=0)
    grown = mean_stretch([turn, turn], centre)
    torch.testing.assert_close(grown[:3, :3], 1.2 * torch.eye(3).double())
    torch.testing.assert_close(grown[:3, :3] @ centre + grown[:3, 3], centre)


def test_mean_velocities_take_a_shape_to_the_middle():
    grid = ImageGrid(PLACE, (*SHAPE, 1))
    flow = flow_on(grid, grid, 0)
    still = flow_on(grid, grid, 1, size=0.0)
    half = mean_flow([flow, still], grid)
    torch.testing.assert_close(half.displacement(), flow.displacement(None, 0, 0.5), atol=1e-3, rtol=0)
    assert mean_flow([flow, flow.on(grid)], grid).displacement().allclose(flow.displacement(), atol=1e-4)
    longer = torch.diag(torch.tensor([1.21, 1, 1, 1])).double()
    shape = to_mean_shape([still, still], [longer, torch.eye(4).double()], grid)
    axis = torch.arange(SHAPE[0]) - (SHAPE[0] - 1) / 2
    expected = torch.stack([(axis / 1.1 - axis)[:, None].expand(SHAPE), torch.zeros(SHAPE)])
    torch.testing.assert_close(shape.ddf, expected, atol=1e-5, rtol=0)


def test_sharpening_keeps_a_constant_and_the_range():
    image = smooth_image(SHAPE, 0)
    assert torch.equal(sharpened(image, 0.0, (1.0, 1.5)), image)
    sharp = sharpened(image, 2.0, (1.0, 1.5))
    assert sharp.std() > image.std()
    assert (sharp.min(), sharp.max()) == (image.min(), image.max())
    torch.testing.assert_close(sharpened(torch.full((1, *SHAPE), 3.0), 2.0, (1.0, 1.5)), torch.full((1, *SHAPE), 3.0))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A list of four images that are one, each moved by a flow and its opposite, with labels and masks."""
    middle = smooth_image(SHAPE, 0)[0].numpy()
    lines = ["image,label,mask"]
    for n in range(4):
        ddf = (1 - 2 * (n % 2)) * smooth_ddf(SHAPE, n // 2, 1.5).numpy()
        moved = map_coordinates(middle, np.indices(SHAPE) + ddf, order=3, mode="nearest")
        kinds = {"image": 1000 * moved, "label": 7 * (moved > 0.5), "mask": np.ones(SHAPE)}
        for name, values in kinds.items():
            nib.save(nib.Nifti1Image(values.astype(np.float32)[..., None], PLACE), tmp_path / f"{name}{n}.nii.gz")
        lines.append(",".join(f"{name}{n}.nii.gz" for name in kinds))
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def template(*words: object) -> str:
    with as_it_was():
        result = CliRunner().invoke(main, ["template", *map(str, words), *QUICK])
    return f"{result.exit_code} {result.output}"


def values(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata()


@pytest.mark.long
def test_command_is_free_of_order_and_goes_on(images):
    """The same images, in another order and by other names, twice."""
    assert template(images / "list.csv", "-o", images / "a").startswith("0 ")
    lines = (images / "list.csv").read_text(encoding="utf-8").splitlines()
    shutil.copy(images / "image3.nii.gz", images / "another.nii.gz")
    again = [lines[0], lines[4].replace("image3", "another"), *lines[3:0:-1]]
    (images / "again.csv").write_text("\n".join(again), encoding="utf-8")
    assert template(images / "again.csv", "-o", images / "b").startswith("0 ")
    for name in ("template", "labels", "probability", "mask"):
        np.testing.assert_allclose(values(images / f"a/{name}.nii.gz"), values(images / f"b/{name}.nii.gz"), atol=1e-3)
    assert set(np.unique(values(images / "a/labels.nii.gz"))) == {0, 7}
    assert values(images / "a/mask.nii.gz").all()
    with (images / "a/convergence.csv").open(encoding="utf-8") as file:
        rounds = list(csv.DictReader(file))
    assert [row["images"] for row in rounds] == ["4", "4"]
    assert all(0 < float(row["sharpness"]) < 1 for row in rounds)

    done = [stamps(images / f"a/rounds/{n}") for n in (1, 2)]
    before = values(images / "a/template.nii.gz")
    lost = next(iter(done[1]))
    (images / f"a/rounds/2/{lost}/result.json").unlink()  # as if killed in the last round
    assert template(images / "list.csv", "-o", images / "a").startswith("0 ")
    after = [stamps(images / f"a/rounds/{n}") for n in (1, 2)]
    assert after[0] == done[0]
    assert [id for id in done[1] if done[1][id] != after[1][id]] == [lost]
    np.testing.assert_array_equal(values(images / "a/template.nii.gz"), before)


def test_broken_images_are_named_and_left_out(images, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (images / "image1.nii.gz").write_bytes(b"no image")
    register = register_rows

    def failing(job, rows):
        if rows[0]["id"] == "image2":
            raise ValueError("image2 does not fit")
        return register(job, rows)

    monkeypatch.setattr("monai_nodeo.apps.cohort.job.register_rows", failing)
    said = template(*(images / f"image{n}.nii.gz" for n in range(4)), "-o", images / "out")
    assert said.startswith("3 "), said
    assert "template of 2 of 4 images; left out: image1, image2\n" in said
    assert caplog.text.count("image1.nii.gz: not an image") == 1
    assert "done and unchanged" not in caplog.text
    figures = json.loads((images / "out/metrics.json").read_text(encoding="utf-8"))
    reasons = {entry["id"]: entry["reason"] for entry in figures["left_out"]}
    assert set(figures["images"]) == {"image0", "image3"}
    assert re.match(r"image \S+image1.nii.gz: not an image", reasons["image1"])
    assert [f"round {n} of 2" in caplog.text for n in range(4)] == [False, True, True, False]
    assert reasons["image2"] == "image2 does not fit"
    rows = group([images / f"image{n}.nii.gz" for n in (0, 1)])
    with pytest.raises(PairError, match="needs two images, and 1 can be used; left out: image1"):
        build_template(rows, images / "none", quick_settings(2))
    with pytest.raises(DataListError, match="one image"):
        group([images / "image0.nii.gz"])
    with pytest.raises(DataListError, match=r"is a folder; give the images in it, as .*\*\.nii\.gz, or a list"):
        group([images])


@pytest.mark.long
def test_template_of_one_image_moved_there_and_back_is_that_image(images):
    """Also from another start; headers that are far from one another are put on one another before."""
    middle, start = smooth_image(SHAPE, 0)[0].numpy(), images / "image0.nii.gz"
    rows = group([images / f"image{n}.nii.gz" for n in range(4)])
    settings = quick_settings(2, iterations=(20, 10), initial_transform="moments")
    for n in range(1, 4):
        image = nib.load(images / f"image{n}.nii.gz")
        place = PLACE.copy()
        place[:2, 3] = 40 * n, -30
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), place), images / f"image{n}.nii.gz")
    found = [
        build_template(rows, images / f"of{number}", settings, 2, given, 0.0).mean.image[0].numpy()
        for number, given in enumerate((None, str(start)))
    ]
    inside = (slice(4, -4),) * 2
    for image in found:
        assert np.corrcoef(image[inside].ravel(), middle[inside].ravel())[0, 1] > 0.98
    biased = np.corrcoef(values(start)[..., 0][inside].ravel(), middle[inside].ravel())[0, 1]
    assert np.corrcoef(found[1][inside].ravel(), middle[inside].ravel())[0, 1] > biased
