# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, ScaleIntensityd
from scipy import ndimage
from synthetic import deformed_pair, smooth_image
from torch import nn

from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.load import LoadPaird
from monai_nodeo.data.match import MatchGridd
from monai_nodeo.files import read_displacement
from monai_nodeo.flows import NODEONet
from monai_nodeo.metrics.pairs import pair_figures
from monai_nodeo.registration import outputs
from monai_nodeo.registration.inferer import PairInferer, prepare_pair
from monai_nodeo.registration.outputs import PairsFailedError, SavePair, make_output_dir, run
from monai_nodeo.registration.transforms import WarpWithDDFd

SHAPE = (12, 9, 11)
SPACING = (1.5, 2.0, 1.0)
ITERATIONS = 2
FILES = {"warped.nii.gz", "displacement.nii.gz", "jacobian.nii.gz", "transform.h5", "metrics.json", "history.csv"}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A row with images and labels."""
    folder = tmp_path_factory.mktemp("images")
    fixed, moving, _ = deformed_pair(SHAPE)
    values = {"fixed": fixed, "moving": moving, "fixed_label": fixed > 0.5, "moving_label": moving > 0.5}
    affine = np.diag([*SPACING, 1.0])
    for key, image in values.items():
        nib.save(nib.Nifti1Image(100 * image[0].numpy().astype(np.float32), affine), folder / f"{key}.nii.gz")
    return {key: str(folder / f"{key}.nii.gz") for key in values}


def images(row: Mapping[str, str], id: str) -> dict[str, str]:
    return {"fixed": row["fixed"], "moving": row["moving"], "id": id}


def make_evaluator(folder: Path, *rows: Mapping[str, Any], **options: Any) -> tuple[SupervisedEvaluator, PairDataset]:
    """A stock evaluator with the handler under test, made in Python as a user would do it."""
    inputs = ["fixed_input", "moving_input"]
    steps = [LoadPaird(), MatchGridd(), ScaleIntensityd(inputs)]
    dataset = PairDataset(rows, Compose(steps))
    inferer = PairInferer(iterations=[ITERATIONS], shrink_factors=[1])
    warps = WarpWithDDFd(
        ["moving", "moving_label"],
        ddf_key="pred",
        mode=["bilinear", "nearest"],
        output_keys=["warped", "warped_label"],
        allow_missing_keys=True,
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=NODEONet(),
        inferer=inferer,
        prepare_batch=prepare_pair,
        postprocessing=warps,
        val_handlers=[SavePair(make_output_dir(folder), inferer, dataset, **options)],
    )
    return evaluator, dataset


# make_output_dir


def test_a_folder_is_made_with_its_parents_and_stays_empty(tmp_path) -> None:
    folder = make_output_dir(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


def test_an_existing_folder_keeps_what_is_in_it(tmp_path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert make_output_dir(str(tmp_path)) == tmp_path
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "mine"


def test_the_folder_is_absolute_and_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert make_output_dir("out") == tmp_path / "out"
    assert make_output_dir("~/out") == tmp_path / "home" / "out"


@pytest.mark.parametrize("below", ["", "out", "out/deeper"])
def test_a_folder_that_cannot_be_is_named_with_the_way_out(tmp_path, below: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(OSError, match="output_dir") as info:
        make_output_dir(tmp_path / "file" / below)
    assert str(tmp_path / "file" / below) in str(info.value)
    assert "give another folder with --output_dir" in str(info.value)


# pair_figures


def figures_of(ddf: torch.Tensor, **labels: torch.Tensor) -> dict[str, Any]:
    """Figures with the mean squared error as similarity; fixed and moving are one image."""
    image = MetaTensor(smooth_image(SHAPE), affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    item: dict[str, Any] = {"fixed": image, "fixed_input": image, "moving_input": image}
    output: dict[str, Any] = {"pred": ddf}
    if labels:
        item |= {f"{side}_label": MetaTensor(labels[side], affine=image.affine) for side in ("fixed", "moving")}
        output["warped_label"] = labels["warped"]
    return pair_figures(item, output, nn.MSELoss())


def test_landmarks_are_measured_where_the_moving_image_lies() -> None:
    ddf = torch.zeros(3, *SHAPE)
    ddf[0] = 2
    image = MetaTensor(smooth_image(SHAPE), affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    landmarks = torch.tensor([[[3.0, 3, 3], [5.0, 3, 3]], [[4.0, 3, 3], [6.0, 5, 3]]])
    start = torch.diag(torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    item = {"fixed": image, "fixed_input": image, "moving_input": image, "landmarks": landmarks}
    figures = pair_figures(item, {"pred": ddf}, nn.MSELoss())
    assert figures["before"]["tre_mm"] == pytest.approx([3.0, 5.0])
    assert figures["after"]["tre_mm"] == pytest.approx([0.0, 4.0], abs=1e-5)
    assert figures["after"]["tre_mm_mean"] == pytest.approx(2.0)
    started = pair_figures(item | {"initial_affine": start}, {"pred": ddf}, nn.MSELoss())
    assert started["before"]["tre_mm"] == pytest.approx([6.0, 52**0.5])
    assert started["initial_affine"] == start.tolist()


def test_nothing_changes_without_displacement() -> None:
    figures = figures_of(torch.zeros(3, *SHAPE))
    assert figures.pop("before") == {"similarity": 0}
    assert figures.pop("after") == {"similarity": pytest.approx(0, abs=1e-12)}
    assert figures == {"folding_percent": 0, "folded_cells": 0, "sd_log_jacobian": 0, "displacement_mm_mean": 0}


def test_a_translation_has_its_length_in_mm_and_does_not_fold() -> None:
    ddf = torch.tensor([1.0, 2.0, -2.0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    figures = figures_of(ddf)
    assert figures["displacement_mm_mean"] == pytest.approx((1.5**2 + 4**2 + 2**2) ** 0.5)
    assert figures["folding_percent"] == 0
    assert figures["sd_log_jacobian"] == pytest.approx(0, abs=1e-5)
    assert figures["before"]["similarity"] == 0
    assert figures["after"]["similarity"] > 1e-3


def test_a_reflection_folds_everywhere() -> None:
    ddf = torch.zeros(3, *SHAPE)
    ddf[0] = -2 * torch.arange(SHAPE[0], dtype=torch.float32).view(-1, 1, 1)
    assert figures_of(ddf)["folding_percent"] == 100


def test_labels_are_scored_before_and_after() -> None:
    fixed = torch.zeros(1, *SHAPE)
    fixed[:, 3:7, 2:6, 3:7] = 4
    moving = fixed.roll(2, dims=1)
    figures = figures_of(torch.zeros(3, *SHAPE), fixed=fixed, moving=moving, warped=fixed)
    assert figures["before"]["dice"] == {4: pytest.approx(0.5)}
    assert figures["before"]["hd95_mm"] == {4: pytest.approx(2 * SPACING[0])}
    assert figures["after"]["dice_mean"] == 1
    assert figures["after"]["hd95_mm_mean"] == 0


# SavePair


def test_a_pair_with_labels_gets_all_files_and_a_row(tmp_path, row) -> None:
    evaluator, _ = make_evaluator(tmp_path, {**row, "id": "pair"}, config={"iterations": ITERATIONS})
    evaluator.run()
    assert names(tmp_path) == {"pair", "metrics.csv"}
    assert names(tmp_path / "pair") == FILES | {"warped_label.nii.gz"}
    figures = json.loads((tmp_path / "pair" / "metrics.json").read_text(encoding="utf-8"))
    assert figures["config"] == {"iterations": ITERATIONS}
    assert figures["iterations"] == ITERATIONS
    assert figures["fixed"] == row["fixed"]
    assert figures["seconds_total"] >= figures["seconds_optimisation"] >= 0
    assert figures["peak_memory_mb"] > 10
    assert figures["device"].startswith("cpu, ")
    assert figures["versions"]["torch"] == torch.__version__
    (line,) = table(tmp_path)
    assert (line["id"], line["status"], line["reason"]) == ("pair", "done", "")
    assert float(line["dice_mean_after"]) == figures["after"]["dice_mean"]
    assert float(line["similarity_before"]) == figures["before"]["similarity"]


def test_the_saved_warp_is_that_of_the_unscaled_moving_image(tmp_path, row) -> None:
    evaluator, _ = make_evaluator(tmp_path, images(row, "pair"))
    evaluator.run()
    warped = nib.nifti1.load(tmp_path / "pair" / "warped.nii.gz").get_fdata()
    ddf, _ = read_displacement(tmp_path / "pair" / "displacement.nii.gz")
    expected = ndimage.map_coordinates(moving_voxels(row), np.indices(SHAPE) + ddf, order=1, mode="nearest")
    np.testing.assert_allclose(warped[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=0.01)
    assert moving_voxels(row).max() > 50


def moving_voxels(row: Mapping[str, str]) -> np.ndarray:
    return nib.nifti1.load(row["moving"]).get_fdata()


def test_the_table_is_complete_after_every_pair(tmp_path, row) -> None:
    rows = [images(row, "a"), {"fixed": "nowhere.nii.gz", "moving": row["moving"], "id": "bad"}, images(row, "b")]
    evaluator, dataset = make_evaluator(tmp_path, *rows)
    seen: list[list[tuple[str, str]]] = []

    def look(_: Engine) -> None:
        seen.append([(line["id"], line["status"]) for line in table(tmp_path)])

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, look)
    evaluator.add_event_handler(Events.COMPLETED, look)
    evaluator.run()
    done = [("a", "done"), ("bad", "failed"), ("b", "done")]
    assert seen == [done[:1], done, done]
    assert [failure.row for failure in dataset.failures] == [2]


def test_failures_after_the_last_good_row_are_in_the_table(tmp_path, row) -> None:
    evaluator, _ = make_evaluator(tmp_path, images(row, "a"), {"fixed": "no.nii.gz", "moving": "no.nii.gz", "id": "z"})
    evaluator.run()
    assert [(line["id"], line["status"]) for line in table(tmp_path)] == [("a", "done"), ("z", "failed")]
    assert "there is no such file" in table(tmp_path)[1]["reason"]


def test_a_second_run_starts_a_new_table(tmp_path, row) -> None:
    evaluator, dataset = make_evaluator(tmp_path, images(row, "a"))
    evaluator.run()
    dataset.data = [images(row, "b")]
    evaluator.run()
    assert [line["id"] for line in table(tmp_path)] == ["b"]


def test_a_pair_that_was_not_saved_to_the_end_has_no_figures(tmp_path, row, monkeypatch) -> None:
    make_evaluator(tmp_path, images(row, "a"))[0].run()
    assert "metrics.json" in names(tmp_path / "a")

    def disk_full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(outputs, "_write_history", disk_full)
    with pytest.raises(OSError, match="no space left"):
        make_evaluator(tmp_path, images(row, "a"))[0].run()
    assert "metrics.json" not in names(tmp_path / "a")


def test_a_run_without_labels_leaves_no_labels_of_an_earlier_run(tmp_path, row) -> None:
    make_evaluator(tmp_path, {**row, "id": "a"})[0].run()
    assert "warped_label.nii.gz" in names(tmp_path / "a")
    make_evaluator(tmp_path, images(row, "a"))[0].run()
    assert names(tmp_path / "a") == FILES


def test_progress_is_logged_with_figures(tmp_path, row, caplog) -> None:
    evaluator, _ = make_evaluator(tmp_path, {**row, "id": "pair"})
    with caplog.at_level(logging.INFO, logger="monai_nodeo.registration.outputs"):
        evaluator.run()
    (message,) = [record.getMessage() for record in caplog.records if record.name == "monai_nodeo.registration.outputs"]
    assert message.startswith("pair: similarity loss ")
    for name in ("Dice", "HD95 mm", "folding", " s"):
        assert name in message


# run


@pytest.fixture
def interrupted() -> Callable[[], Engine]:
    def _make() -> Engine:
        def ctrl_c(*_: Any) -> None:
            raise KeyboardInterrupt

        engine = Engine(lambda *_: None)
        engine.run = ctrl_c
        return engine

    return _make


def test_run_registers_and_says_where_the_results_are(tmp_path, row, caplog) -> None:
    evaluator, dataset = make_evaluator(tmp_path, images(row, "a"))
    with caplog.at_level(logging.INFO, logger="monai_nodeo.registration.outputs"):
        run(evaluator, dataset, tmp_path)
    assert f"results are in {tmp_path}" in caplog.text
    assert names(tmp_path) == {"a", "metrics.csv"}


def test_run_names_every_failed_row_after_the_others_are_done(tmp_path, row) -> None:
    bad = [{"fixed": f"no{i}.nii.gz", "moving": row["moving"], "id": f"bad{i}"} for i in (1, 2)]
    evaluator, dataset = make_evaluator(tmp_path, bad[0], images(row, "good"), bad[1])
    with pytest.raises(PairsFailedError) as info:
        run(evaluator, dataset, tmp_path)
    first, *lines = str(info.value).splitlines()
    assert first == f"2 of 3 pairs failed, see {tmp_path / 'metrics.csv'}:"
    assert [line.split(":")[0] for line in lines] == ["row 1 (bad1)", "row 3 (bad2)"]
    assert names(tmp_path / "good") == FILES


def test_ctrl_c_ends_with_status_130_and_one_line(tmp_path, interrupted, caplog) -> None:
    with pytest.raises(SystemExit) as info:
        run(interrupted(), PairDataset([], dict), tmp_path)
    assert info.value.code == 130
    assert info.value.__suppress_context__
    assert str(tmp_path) in caplog.text
