# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A BIDS dataset to an atlas: names, files and their meaning, going on, and the verdict of the validator."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from cohorts import PLANE, QUICK, as_it_was, save_slice, stamps, table
from synthetic import deformed_pair

from monai_nodeo.apps.bids.dataset import BidsImage
from monai_nodeo.apps.cli import main

WORDS = ("participant", "--atlas", "head.v2", *QUICK)
IMAGES = ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02_run-1")
RESULTS = {
    f"_{name}.{end}"
    for name, kind in (
        ("space-headv2_desc-warped_T1w", "nii.gz"),
        ("from-T1w_to-headv2_mode-image_xfm", "h5"),
        ("from-headv2_to-T1w_mode-image_xfm", "h5"),
        ("space-T1w_seg-headv2_dseg", "nii.gz"),
    )
    for end in (kind, "json")
}


def bids(*words: object) -> str:
    with as_it_was():
        result = CliRunner().invoke(main, ["bids", *map(str, words)])
    return f"{result.exit_code} {result.output}"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``raw``: three images of two subjects, and one in another space; ``head.v2``: an atlas with labels."""
    monkeypatch.chdir(tmp_path)
    for number, stem in enumerate(IMAGES):
        image = tmp_path / "raw" / f"{stem}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        save_slice(image, 1000 * deformed_pair(PLANE, number)[1][0].numpy())
    shutil.copy(image, image.with_name("sub-02_run-1_space-MNI_T1w.nii.gz"))
    description = {"Name": "raw", "BIDSVersion": "1.10.0", "DatasetType": "raw", "Authors": ["A", "B"]}
    (tmp_path / "raw" / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    (tmp_path / "head.v2").mkdir()
    atlas = 1000 * deformed_pair(PLANE, 0)[0][0].numpy()
    save_slice(tmp_path / "head.v2" / "image.nii.gz", atlas)
    labels = nib.Nifti1Image(np.digitize(atlas, [300, 600]).astype(np.uint8)[..., None], np.diag([1, 1.5, 2, 1]))
    nib.save(labels, tmp_path / "head.v2" / "label.nii.gz")
    return tmp_path / "raw"


def resampled(image: Path, reference: Path, transform: Path, mode: int) -> np.ndarray:
    """By SimpleITK alone."""
    images = [sitk.ReadImage(str(path)) for path in (image, reference)]
    read = sitk.ReadTransform(str(transform))
    return sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], read, mode, 0.0, images[0].GetPixelID()))


@pytest.mark.parametrize(
    ("source", "entities", "expected"),
    [
        ("sub-01_T1w", {"space": "A", "desc": "x"}, "sub-01_space-A_desc-x_T1w"),
        ("sub-01_ses-2_acq-mprage_run-1_T1w", {"desc": "x", "space": "A"}, None),
        ("sub-01_run-1_chunk-3_desc-preproc_T1w", {"space": "A"}, "sub-01_run-1_space-A_chunk-3_T1w"),
    ],
)
def test_names_keep_the_order_of_bids(source, entities, expected):
    image = BidsImage.of(Path(f"{source}.nii.gz"))
    assert image.name("T1w", **entities) == (expected or source.replace("_T1w", "_space-A_desc-x_T1w"))


def test_files_do_what_they_say(dataset):
    assert bids(dataset, "out", *WORDS).startswith("0 3 pairs: 3 done, 0 failed")

    out = dataset.parent / "out"
    found = {p.relative_to(out).as_posix() for p in out.glob("sub-*/**/*") if p.is_file()}
    assert found == {stem + result for stem in IMAGES for result in RESULTS}
    atlas = dataset.parent / "head.v2"
    for stem in IMAGES:
        image = dataset / f"{stem}_T1w.nii.gz"
        there, back = (out / f"{stem}_from-{way}_mode-image_xfm.h5" for way in ("T1w_to-headv2", "headv2_to-T1w"))
        warped = out / f"{stem}_space-headv2_desc-warped_T1w.nii.gz"
        expected = resampled(image, atlas / "image.nii.gz", there, sitk.sitkLinear)
        np.testing.assert_allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(warped))), expected, atol=0.5)
        labels = resampled(atlas / "label.nii.gz", image, back, sitk.sitkLabelLinear)
        carried = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{stem}_space-T1w_seg-headv2_dseg.nii.gz")))
        np.testing.assert_array_equal(carried, labels)
        said = json.loads(warped.with_suffix("").with_suffix(".json").read_text(encoding="utf-8"))
        assert said["Sources"] == [f"bids:raw:{stem}_T1w.nii.gz", (atlas / "image.nii.gz").as_uri()]
        assert said["SpatialReference"] == (atlas / "image.nii.gz").as_uri()
    point = (20.0, -25.0, 0.0)
    there_and_back = sitk.ReadTransform(str(back)).TransformPoint(sitk.ReadTransform(str(there)).TransformPoint(point))
    np.testing.assert_allclose(there_and_back, point, atol=0.2)


def test_only_what_is_not_done_is_run(dataset):
    out = dataset.parent / "out"
    cohort = out / "registrations" / "T1w_to_headv2"
    assert "1 done, 0 failed, 2 not run yet" in bids(dataset, "out", *WORDS, "--participant-label", "sub-02")
    assert "3 done" in bids(dataset, "out", *WORDS, "--participant_label", "01", "02", "--session-label", "a", "b")
    first = stamps(cohort)
    mask = out / f"{IMAGES[1]}_space-T1w_seg-headv2_dseg.nii.gz"
    mask.unlink()
    description = (out / "dataset_description.json").read_bytes()

    assert bids(dataset, "out", *WORDS).startswith("0 ")

    assert mask.is_file()
    assert {id for id, stamp in stamps(cohort).items() if stamp != first[id]} == {"sub-01_ses-b_T1w"}
    assert (out / "dataset_description.json").read_bytes() == description

    (dataset / f"{IMAGES[1]}_T1w.nii.gz").write_bytes(b"damaged")
    assert bids(dataset, "out", *WORDS).startswith("3 ")
    assert table(cohort)["sub-01_ses-b_T1w"]["status"] == "failed"
    assert not list(out.glob(f"{IMAGES[1]}_*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("head.v2", "out", *WORDS), "no BIDS dataset"),
        (("raw", "raw", *WORDS), "of another dataset"),
        (("raw", "out", *WORDS, "--suffix", "T2w"), "holds no image sub-*_T2w.nii.gz"),
        (("raw", "out", *WORDS, "--participant-label", "01", "03"), "no such image of sub-03; there are: 01, 02"),
        (("raw", "out", *WORDS, "--space", "MNI-152"), "letters and digits"),
        (("raw", "out", "participant", "--atlas", "none.nii.gz"), "none.nii.gz"),
        (("raw", "out", *WORDS, "--atlas-labels", "none.nii.gz"), "none.nii.gz"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(dataset, words, said):
    output = bids(*words)
    assert output.startswith("1 ")
    assert said in output
    assert not (dataset.parent / "out").exists()


def verdict(validator: str, how: str, *words: str) -> list[dict]:
    """The errors that a validator finds."""
    program = shutil.which(validator)
    if program is None:
        pytest.skip(f"there is no {validator}: {how}")
    run = subprocess.run(
        [program, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    issues = json.loads(run.stdout)["issues"]
    found = issues["errors"] if "errors" in issues else issues["issues"]
    errors = [issue for issue in found if issue["severity"] == "error"]
    assert bool(errors) == bool(run.returncode)
    return errors


def test_validator_finds_no_error(dataset):
    bids(dataset, "out", *WORDS)
    assert verdict("bids-validator-deno", "pip install bids-validator-deno", "--format", "json", "out") == []


def test_older_validator_finds_no_error_in_the_dataset_with_its_derivative(dataset):
    (dataset / "sub-02/anat/sub-02_run-1_space-MNI_T1w.nii.gz").unlink()  # not raw
    bids(dataset, dataset / "derivatives" / "out", *WORDS)
    assert verdict("bids-validator", "npm install --global bids-validator@1", "--json", str(dataset)) == []
