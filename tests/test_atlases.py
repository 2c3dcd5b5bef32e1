# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels from atlases: voting, and the way from files to files."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner
from cohorts import ROOT, as_it_was, environment, stamps
from monai.data import MetaTensor
from synthetic import deformed_pair, quick_settings, smooth_image

from monai_nodeo import PairInferer, Settings
from monai_nodeo.apps import PropagateLabelsd, fuse, propagate, propagate_files
from monai_nodeo.apps.atlases.fusion import similarity, similarity_weights, staple, weighted_vote
from monai_nodeo.apps.cli import main
from monai_nodeo.apps.cohort.job import register_rows
from monai_nodeo.data import PairError
from monai_nodeo.data.lists import atlases_to_one

SHAPE = (28, 34)
PLACE = np.diag([1.0, 1.5, 2.0, 1.0])
QUICK = ("--device", "cpu", "--init", "none", "--set", "iterations=[3,3]")


def wrong_maps(count: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Labels 0, 3, 7 in blocks, and maps of which the n-th has more wrong voxels than those before."""
    truth = torch.tensor([0, 3, 7])[(smooth_image(SHAPE, seed)[0] * 2.99).long()]
    maps = []
    for n in range(count):
        wrong = torch.rand(SHAPE) < 0.1 + 0.1 * n
        maps.append(torch.where(wrong, torch.tensor([0, 3, 7])[torch.randint(3, SHAPE)], truth))
    return truth, maps


def test_fusion_of_known_shares():
    shares = {3: torch.tensor([0.6, 0.3, 0.0, 0.1]), 7: torch.tensor([0.1, 0.5, 0.2, 0.45])}
    fused = fuse([3, 7], shares.__getitem__)
    assert fused.labels.tolist() == [3, 7, 0, 0]  # of two as probable ones, the background
    torch.testing.assert_close(fused.probability, torch.tensor([0.6, 0.5, 0.8, 0.45]))
    torch.testing.assert_close(fused.confidence, torch.tensor([0.3, 0.2, 0.6, 0.0]))


def test_weights_follow_the_likeness_and_no_linear_change_of_intensities():
    fixed = smooth_image(SHAPE, 0)
    spoilt = fixed.clone()
    torch.manual_seed(0)
    spoilt[:, :14] += 0.2 * torch.randn(14, SHAPE[1])
    weights = similarity_weights(fixed, [spoilt, 3 - 2 * smooth_image(SHAPE, 1)], (1.0, 1.5))
    torch.testing.assert_close(weights.sum(0), torch.ones(SHAPE))
    assert weights[0, 20:].mean() > 0.65
    assert weights[0, :10].mean() < weights[0, 20:].mean()
    other = similarity_weights(fixed, [5 - 4 * spoilt, smooth_image(SHAPE, 1)], (1.0, 1.5))
    torch.testing.assert_close(other, weights, atol=1e-3, rtol=1e-3)
    assert similarity(fixed, 1 - 2 * fixed) == pytest.approx(1, abs=1e-5)
    assert similarity(fixed, spoilt) < 0.9


def test_staple_is_that_of_itk_and_trusts_the_better_ones():
    truth, maps = wrong_maps(5)
    fused = fuse(*staple(maps))
    images = [sitk.GetImageFromArray(label.numpy().astype(np.uint8)) for label in maps]
    expected = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(images))
    decided = expected != 8
    np.testing.assert_array_equal(fused.labels.numpy()[decided], expected[decided])
    majority = fuse([3, 7], weighted_vote(lambda v: [(m == v).float() for m in maps], torch.ones(5, 1, 1)))
    assert (fused.labels == truth).float().mean() >= (majority.labels == truth).float().mean()
    assert fused.probability.max() <= 1 + 1e-5


@pytest.fixture
def atlases(tmp_path: Path) -> Path:
    """An image, its labels, and three atlases of it: another grid each, one without a label map."""
    fixed, _, _ = deformed_pair(SHAPE, 0)

    def save(path: Path, values: torch.Tensor, kind: type) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values[0].numpy().astype(kind)[..., None], PLACE), path)

    save(tmp_path / "image.nii.gz", 1000 * fixed, np.float32)
    save(tmp_path / "truth.nii.gz", 300 * (fixed > 0.5), np.int16)
    for seed in range(3):
        moved = torch.roll(fixed, (seed, -1), (1, 2))
        save(tmp_path / f"atlases/a{seed}/image.nii.gz", 900 * moved + 5, np.float32)
        save(tmp_path / f"atlases/a{seed}/label.nii.gz", 300 * (moved > 0.5), np.int16)
    (tmp_path / "atlases/a1/label.nii.gz").unlink()
    return tmp_path


@pytest.mark.parametrize("fusion", ["local", "majority", "staple"])
def test_command_names_the_broken_atlas_and_labels_by_the_others(atlases, fusion):
    words = ["propagate", str(atlases / "image.nii.gz"), "--atlases", str(atlases / "atlases"), *QUICK]
    words += [
        "-o",
        str(atlases / "out"),
        "--fusion",
        fusion,
        "--label",
        str(atlases / "truth.nii.gz"),
        "--probabilities",
    ]
    (atlases / "out" / "probabilities").mkdir(parents=True, exist_ok=True)
    (atlases / "out" / "probabilities" / "7.nii.gz").touch()  # of an earlier run
    with as_it_was():
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 3, result.output
    assert "labels by 2 of 3 atlases\n" in result.output
    figures = json.loads((atlases / "out/metrics.json").read_text(encoding="utf-8"))
    assert [atlas["id"] for atlas in figures["atlases"] if atlas["chosen"]] == ["a0", "a2"]
    (broken,) = [atlas for atlas in figures["atlases"] if not atlas["chosen"]]
    assert broken["id"] == "a1"
    assert "label.nii.gz" in broken["reason"]
    assert figures["dice_mean"] > 0.8
    labels = nib.load(atlases / "out/labels.nii.gz")
    assert labels.shape == (*SHAPE, 1)
    assert labels.get_data_dtype() == np.int16
    np.testing.assert_allclose(labels.affine, PLACE)
    assert set(np.unique(labels.get_fdata())) == {0, 300}
    assert [path.name for path in (atlases / "out/probabilities").iterdir()] == ["300.nii.gz"]
    share = nib.load(atlases / "out/probabilities/300.nii.gz").get_fdata()
    np.testing.assert_array_equal(share > 0.5, labels.get_fdata() == 300)


def test_lists_and_memory_give_what_files_give(atlases):
    """A CSV of pairs, and a MONAI transform of images in memory; only the best atlas is taken, not the image itself."""
    names = ["image", *(f"atlases/a{n}/image" for n in (0, 2))]
    labels = ["truth", *(f"atlases/a{n}/label" for n in (0, 2))]
    lines = [f"{i}.nii.gz,{label}.nii.gz" for i, label in zip(names, labels, strict=True)]
    (atlases / "list.csv").write_text("image,label\n" + "\n".join(lines), encoding="utf-8")
    image = MetaTensor(
        torch.from_numpy(nib.load(atlases / "image.nii.gz").get_fdata(dtype=np.float32))[None],
        affine=torch.from_numpy(PLACE),
        meta={"filename_or_obj": str(atlases / "image.nii.gz")},
    )
    settings, found = quick_settings(2), []
    in_memory = [
        {"image": str(atlases / f"{i}.nii.gz"), "label": str(atlases / f"{label}.nii.gz")}
        for i, label in zip(names[1:], labels[1:], strict=True)
    ]
    for given in (str(atlases / "list.csv"), in_memory):
        step = PropagateLabelsd("image", given, confidence_keys="sure", settings=settings, best=1)
        found.append(step({"image": image}))
    for result in found:
        assert result["label"].shape == result["sure"].shape == image.shape
        torch.testing.assert_close(result["label"].affine, image.affine)
    torch.testing.assert_close(found[0]["label"].as_tensor(), found[1]["label"].as_tensor())
    assert (found[0]["label"] == 300).float().mean() > 0.1


def test_command_names_the_best_atlases(atlases):
    words = ["propagate", str(atlases / "image.nii.gz"), "--atlases", str(atlases / "atlases"), *QUICK]
    with as_it_was():
        result = CliRunner().invoke(main, [*words, "--best", "1", "-o", str(atlases / "out")])
    assert "labels by the 1 most similar of 3 atlases: a0\n" in result.output


def words(folder: Path, output: str, *more: str) -> list[str]:
    return [
        *("propagate", str(folder / "image.nii.gz"), "--atlases", str(folder / "atlases"), *QUICK),
        *("-o", str(folder / output), "--probabilities", *more),
    ]


def files(folder: Path) -> dict[str, bytes]:
    """The maps in a folder of results, without what gzip says of them."""
    names = ("labels", "probability", "confidence", "probabilities/300")
    return {name: nib.load(folder / f"{name}.nii.gz").get_fdata().tobytes() for name in names}


def test_run_goes_on_and_keeps_what_another_fusion_needs(atlases, monkeypatch):
    """Interrupted at the second atlas; an atlas that fails where it is registered is left out by its name."""
    shutil.copy(atlases / "atlases/a0/label.nii.gz", atlases / "atlases/a1/label.nii.gz")
    register, broken = register_rows, {"a2": KeyboardInterrupt()}

    def failing(job, rows):
        if rows[0]["id"] in broken:
            raise broken[rows[0]["id"]]
        return register(job, rows)

    monkeypatch.setattr("monai_nodeo.apps.cohort.job.register_rows", failing)
    kept = atlases / "out/registrations"
    with as_it_was():
        result = CliRunner().invoke(main, words(atlases, "out"))
        assert result.exit_code == 130
        assert f"interrupted: what is finished is in {atlases / 'out'}; run the same" in result.output
        assert not (atlases / "out/labels.nii.gz").exists()
        done = stamps(kept)
        assert set(done) == {"a0", "a1"}
        broken["a2"] = ValueError("a2 does not fit")
        result = CliRunner().invoke(main, words(atlases, "out"))
        assert result.exit_code == 3, result.output
        assert "labels by 2 of 3 atlases" in result.output
        figures = json.loads((atlases / "out/metrics.json").read_text(encoding="utf-8"))
        assert figures["atlases"][-1] == {"id": "a2", "chosen": False, "reason": "a2 does not fit"}
        broken.clear()
        assert CliRunner().invoke(main, words(atlases, "out")).exit_code == 0
        all_done = stamps(kept)
        assert {id: all_done[id] for id in done} == done
        assert CliRunner().invoke(main, words(atlases, "out", "--fusion", "majority", "--best", "2")).exit_code == 0
        assert stamps(kept) == all_done
        (kept / "a0/displacement.npy").unlink()
        assert CliRunner().invoke(main, words(atlases, "out")).exit_code == 0
    assert [id for id, stamp in stamps(kept).items() if stamp != all_done[id]] == ["a0"]
    names = {path.name for path in (kept / "a0").iterdir()}
    assert names - {".claim"} == {"displacement.npy", "flow.safetensors", "history.csv", "metrics.json", "result.json"}


def test_files_on_an_engine_give_what_memory_gives(atlases):
    rows = atlases_to_one(atlases / "image.nii.gz", atlases / "atlases")
    settings = quick_settings(2, initial_transform="moments")
    found = [
        propagate(PairInferer(settings, handlers=()), rows, device="cpu"),
        propagate_files(rows, atlases / "kept", settings, device="cpu"),
    ]
    for one, other in zip(found[0].fused, found[1].fused, strict=True):
        assert torch.equal(one, other)
    tables = [[{**atlas} for atlas in one.figures["atlases"]] for one in found]
    assert tables[0] == tables[1]
    assert torch.equal(found[0].vote(300), found[1].vote(300))


@pytest.mark.long
def test_workers_give_the_same_and_one_that_is_killed_loses_nothing(atlases):
    for number in range(3, 6):
        shutil.copytree(atlases / "atlases/a0", atlases / f"atlases/a{number}")
    several = ("--set", "iterations=[60,60]", "--threads", "1")
    with as_it_was():
        assert CliRunner().invoke(main, words(atlases, "here", *several)).exit_code == 3
    command = [sys.executable, "-m", "monai_nodeo", *words(atlases, "there", *several, "--workers", "2")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    kept = atlases / "there/registrations"
    while not stamps(kept) and process.poll() is None:
        time.sleep(0.02)
    workers = [p for p in psutil.Process(process.pid).children(True) if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    done = stamps(kept)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 3, said
    assert "labels by 5 of 6 atlases" in said
    after = stamps(kept)
    assert len(done) < len(after) == 5
    assert {id: after[id] for id in done} == done
    assert files(atlases / "there") == files(atlases / "here")


def test_no_atlas_left_is_an_error(atlases, caplog):
    row = {"id": "a", "fixed": atlases / "image.nii.gz", "moving": "none.nii.gz", "moving_label": "none.nii.gz"}
    with pytest.raises(PairError, match="no atlas is left; left out: a"):
        propagate(PairInferer(quick_settings(2), handlers=()), [row])
    assert "a is left out: moving none.nii.gz: there is no such file" in caplog.text
    with pytest.raises(PairError, match=r"^label gone\.nii\.gz: there is no such file"):
        propagate(PairInferer(quick_settings(2), handlers=()), [row], label="gone.nii.gz")
    with pytest.raises(ValueError, match="the best 2 of 1 atlases were asked for"):
        propagate(PairInferer(quick_settings(2), handlers=()), [row], best=2)


def test_real_slices(oasis):
    """Three fused atlases are better than the best of them alone."""
    names = ["slice_norm.nii.gz", "slice_seg24.nii.gz"]
    subjects = sorted(folder for folder in (oasis / "oasis2d").iterdir())[:4]
    rows = [
        {"id": s.name, "fixed": subjects[0] / names[0], "moving": s / names[0], "moving_label": s / names[1]}
        for s in subjects[1:]
    ]
    inferer = PairInferer(Settings.preset("fast", 2, initial_transform=None), handlers=())
    dice = [propagate(inferer, x, label=subjects[0] / names[1]).figures["dice_mean"] for x in (rows, rows[:1])]
    assert dice[0] > 0.75
    assert dice[0] > dice[1] + 0.02


@pytest.mark.long
def test_real_heads(oasis, tmp_path):
    """One head is the atlas of the other, both at half the resolution."""
    for name in ("0001", "0002"):
        for kind in ("norm", "seg35"):
            whole = nib.Nifti1Image.from_filename(oasis / f"oasis3d/{name}/aligned_{kind}.nii.gz")
            nib.save(whole.slicer[::2, ::2, ::2], tmp_path / f"{name}_{kind}.nii.gz")
    image, label, moving, moving_label = (
        tmp_path / f"{n}_{k}.nii.gz" for n in ("0001", "0002") for k in ("norm", "seg35")
    )
    rows = [{"id": "0002", "fixed": image, "moving": moving, "moving_label": moving_label}]
    labelled = propagate(PairInferer(Settings.preset("fast"), handlers=()), rows, label=label)
    assert labelled.figures["dice_mean"] > 0.6
    assert len(labelled.figures["dice"]) == 35
