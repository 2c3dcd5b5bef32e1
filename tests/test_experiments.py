# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage
from scipy.stats import norm, ttest_rel

from experiments.__main__ import main
from experiments.catalogue import COLUMNS, Run, column_changes, experiments
from experiments.page import write_page
from experiments.pairs import Shapes, Slices, Volumes, disc_and_c
from experiments.recorded import is_done, made_with, read_result, relevant_settings
from experiments.running import _reproduction_dice, run_all
from experiments.tables import ablation_table, cohort_table, paired_difference, volume_table
from monai_nodeo.registration import PairInferer, Settings
from monai_nodeo.registration.named_parts import make_velocity

ROOT = Path(__file__).resolve().parents[1]
RUNS = {run.name: run for group in experiments().values() for run in group.values()}
TINY = Run("tiny", Shapes((20, 24)), changes={"iterations": [3], "best_window": 1})


@pytest.mark.parametrize("name", RUNS)
def test_every_run_can_be_made(name):
    inferer = PairInferer(RUNS[name].settings)
    assert inferer.settings.iterations == (300,)
    assert inferer.components.velocity.spatial_dims == RUNS[name].pairs.spatial_dims


def test_presets_hold_differences_only_and_are_used():
    seen = [(repr(run.pairs), run.settings) for run in RUNS.values()]
    assert not [a for i, a in enumerate(seen) if a in seen[:i]]  # none is run twice
    used = set(COLUMNS.values()) - {None}
    assert used == {path.stem for path in (ROOT / "configs" / "paper_2d").glob("*.json")}
    published = Settings.preset("paper_lambda2.5", 2).to_dict()
    for name in used:
        for setting, value in column_changes(name).items():
            assert published[setting] != value, f"{name}.json: {setting} is {value} anyway"


def test_gaussian_of_the_paper_is_the_published_kernel():
    kernel = torch.tensor(make_velocity(RUNS["cohort_a"].settings).smoothing.kernel())
    published = np.diff(norm.cdf(np.linspace(-0.1, 0.1, 15 + 1)))  # its window of 15, its nsig of 0.1
    np.testing.assert_allclose(kernel / kernel.sum(), published / published.sum(), rtol=1e-4)
    assert published.min() / published.max() == pytest.approx(0.9957, abs=1e-4)


@pytest.mark.parametrize("size", [(40, 48), (128, 144), (61, 40)])
def test_a_c_is_a_disc_with_an_open_hole(size):
    disc, c = disc_and_c(size)
    middle = tuple(n // 2 for n in size)
    assert disc.shape == c.shape == size
    assert ((c == 1) <= (disc == 1)).all()
    assert disc[middle] == 1
    assert c[middle] == 0
    assert ndimage.label(c)[1] == 1
    assert ndimage.label(c == 0)[1] == 1, "the hole is open"
    np.testing.assert_array_equal(c, c[:, ::-1])


def test_volumes_are_cropped_where_they_lie(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.array([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]])
    for subject in (1, 2):
        folder = tmp_path / "oasis3d" / f"{subject:04d}"
        folder.mkdir(parents=True)
        for name in ("aligned_norm", "aligned_seg35"):
            nib.save(nib.Nifti1Image(rng.integers(0, 9, (5, 6, 7), dtype=np.uint8), affine), folder / f"{name}.nii.gz")
    (tmp_path / "crops").mkdir()
    (row,) = Volumes(1, 2, (2, 6)).rows(tmp_path, tmp_path / "crops")
    whole, part = nib.load(tmp_path / "oasis3d" / "0002" / "aligned_norm.nii.gz"), nib.load(row["moving"])
    np.testing.assert_array_equal(part.get_fdata(), whole.get_fdata()[..., 2:6])
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], affine @ [0, 0, 2, 1])
    assert row["id"] == "0002_to_0001"


@pytest.mark.parametrize("layout", ["{:04d}", "OASIS_OAS1_{:04d}_MR1"])
def test_data_are_found_in_both_layouts_and_what_is_missing_is_named(layout, tmp_path):
    with pytest.raises(FileNotFoundError, match="--data"):
        Slices(((1, 2),)).rows(None, tmp_path)
    for subject in (1, 2):
        folder = tmp_path / "oasis2d" / layout.format(subject)
        folder.mkdir(parents=True)
        (folder / "slice_norm.nii.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"slice_seg24\.nii\.gz is missing.*make oasis"):
        Slices(((1, 2),)).rows(tmp_path, tmp_path)


def test_a_finished_run_is_not_repeated_unless_its_settings_changed(tmp_path, capsys):
    run = dataclasses.replace(TINY, keep_fields=True)
    run_all([run], None, tmp_path)
    first = read_result(tmp_path, run)
    assert first is not None
    assert first["settings"]["iterations"] == [3]
    assert [pair["id"] for pair in first["pairs"]] == ["disc_to_c_0.25"]
    assert np.load(tmp_path / "fields" / "tiny.npz")["ddf"].shape == (2, 20, 24)
    written = (tmp_path / "tiny.json").stat().st_mtime_ns
    run_all([run], None, tmp_path)
    assert (tmp_path / "tiny.json").stat().st_mtime_ns == written
    assert "1 of 1 runs are done" in capsys.readouterr().out
    (tmp_path / "fields" / "tiny.npz").unlink()
    others = {"pairs": Shapes((24, 20))}, {"changes": {**TINY.changes, "seed": 1}}
    changed = (run, *(dataclasses.replace(TINY, **other) for other in others))
    assert [is_done(r, tmp_path) for r in (TINY, *changed)] == [True, False, False, False]


def test_missing_data_are_found_before_anything_is_run(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_all([TINY, RUNS["cohort_a"]], tmp_path, tmp_path / "results")
    assert not list(tmp_path.rglob("*.json"))


def test_the_page_says_what_is_recorded(tmp_path):
    """`make reproduce QUICK=1`, which .ci/run calls, shows that the commands run."""
    recorded = ROOT / "docs" / "reproduction.md"
    for picture in recorded.parent.glob(f"{recorded.stem}_*.png"):
        (tmp_path / picture.name).touch()
    command = CliRunner().invoke(main, ["page", "--output", str(tmp_path / recorded.name)])
    assert command.exit_code == 0, command.output
    assert (tmp_path / recorded.name).read_text(encoding="utf-8") == recorded.read_text(encoding="utf-8")


def result(name: str, dice: list[float], **more: Any) -> dict[str, Any]:
    figures = {"folding_percent": 0.1, "folding_sum": 2.0, "sd_log_jacobian": 0.2, "hd95_mm": 3.0, "seconds": 4.0}
    pairs = [{"id": f"p{i}", "dice": value, **figures, **more} for i, value in enumerate(dice)]
    return {"run": name, "pairs": pairs, "memory_mb": 50}


def save(folder: Path, *results: dict[str, Any]) -> None:
    for found in results:
        (folder / f"{found['run']}.json").write_text(json.dumps(found))


def test_what_is_not_there_is_said(tmp_path):
    write_page(tmp_path / "results", tmp_path / "page.md", quick=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8").count("not run yet") > 20
    command = CliRunner().invoke(main, ["run", "cohrt", "--quick"])
    assert "unknown group cohrt; known are figure, cohort" in command.output


def test_paired_difference_is_that_of_a_paired_t_test():
    a, b = [0.71, 0.74, 0.69, 0.80], [0.70, 0.75, 0.66, 0.77]
    difference, half = paired_difference(result("a", a), result("b", b))
    low, high = ttest_rel(a, b).confidence_interval()
    assert (difference - half, difference + half) == pytest.approx((low, high))
    assert paired_difference(result("a", a), result("b", a)) == (0, 0)
    with pytest.raises(ValueError, match="different pairs"):
        paired_difference(result("a", a), result("b", b[:2]))


def test_tables_have_a_row_a_run_and_say_what_is_not_run(tmp_path):
    runs = {"(p) published": TINY} | {f"({n})": dataclasses.replace(TINY, name=n) for n in "ab"}
    more = {"dice_27": 0.8, "dice_28_with_background": 0.81}
    save(tmp_path, result("tiny", [0.5, 0.7], **more), result("a", [0.6, 0.9], **more))
    _, _, published, better, missing = cohort_table(runs, tmp_path, "(p) published").splitlines()
    assert published.startswith("| (p) published | 0.6000 ± 0.1414 |")
    assert "+0.1500 ± " in better
    assert "| not run yet |" in missing
    for table in (ablation_table(runs, tmp_path, TINY), volume_table(runs, tmp_path)):
        lines = table.splitlines()
        assert len(lines) == 5
        assert len({line.count("|") for line in lines}) == 1
    assert "| 0.8100 | 0.8000 | 0.1000 | 2.0 | 3.00 | 4.0 | 50 |" in table


def test_reproduction_counts_28_structures_with_the_background():
    truth = torch.arange(36).repeat(4, 1)
    label = truth.clone()
    label[0, 35] = 0  # a structure that is not counted, so only the background suffers
    perfect = dict.fromkeys(range(1, 36), 1.0)
    found = _reproduction_dice(perfect, label, truth)
    assert found["dice_27"] == 1
    assert found["dice_28_with_background"] == pytest.approx((27 + 2 * 4 / (5 + 4)) / 28)
    assert _reproduction_dice({1: 1.0}, label, truth) == {}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_results_belong_to_a_run(path):
    recorded = json.loads(path.read_text(encoding="utf-8"))
    run = RUNS[path.stem]
    assert recorded["run"] == path.stem
    assert recorded["registered"] == repr(run.pairs)
    settings, made = relevant_settings(run), made_with(recorded)
    assert len(made) > 20
    assert {name: settings[name] for name in made} == made
    assert all(np.isfinite(v) for pair in recorded["pairs"] for v in pair.values() if not isinstance(v, str))


def test_results_of_before_there_were_settings_are_done_unless_these_changed():
    results, run = ROOT / "experiments" / "results", RUNS["cohort_a"]
    changed = [dataclasses.replace(run, changes={**run.changes, **c}) for c in ({"num_steps": 2}, {"kernel_size": 74})]
    assert [is_done(r, results) for r in (run, *changed)] == [True, False, False]
