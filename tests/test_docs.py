# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands and the Python of the documentation are run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from cohorts import QUICK, as_it_was, make_rows, table
from dicom import write_series
from grids import VOLUME, make_image
from scipy.spatial.transform import Rotation

from monai_nodeo.cli import main
from monai_nodeo.data.examples import example_pair
from monai_nodeo.files import ImageGrid, write_affine, write_image, write_labels

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def commands(page: str) -> list[list[str]]:
    """Our commands in a page's shell blocks; those of other tools stand there for comparison."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["monai-nodeo"]]


def run(words: list[str]) -> None:
    if words[0] == "register":  # sets up logging and memory for a process of its own
        done = subprocess.run([sys.executable, "-m", "monai_nodeo", *words], capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"{words}: {result.output}"


def test_page_for_newcomers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two series of the example's heads, of which the second lies turned and shifted in its scanner."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    pair = example_pair(3, spacing=5.0)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (8, -6, 10), degrees=True).as_matrix()
    turned[:3, 3] = 25, -15, 30
    for name, image, label, affine in (
        ("anna", pair.fixed, pair.fixed_label, pair.affine),
        ("berta", pair.moving, pair.moving_label, turned @ pair.affine),
    ):
        write_series(tmp_path / "scans" / name, (1000 * image).astype(np.int16), affine)
        write_labels(tmp_path / f"{name}_labels.nii.gz", label, ImageGrid(affine, label.shape))

    for words in commands("first_registration.md"):
        run([*words, "--set", "iterations=[10,10,5]"] if words[0] == "register" else words)

    labels = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["labels"]

    assert labels["before"]["dice_mean"] < 0.4
    assert labels["after"]["dice_mean"] > 0.6
    on_anna = nib.Nifti1Image.from_filename(tmp_path / "labels_on_anna.nii.gz")
    assert on_anna.get_data_dtype() == np.uint8
    assert on_anna.shape == pair.fixed.shape
    np.testing.assert_allclose(on_anna.affine, pair.affine, atol=1e-3)
    back = nib.Nifti1Image.from_filename(tmp_path / "anna_on_berta.nii.gz")
    berta = np.corrcoef(back.get_fdata().ravel(), pair.moving.ravel())[0, 1]
    assert berta > 0.9


def test_page_of_transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    grid = ImageGrid(VOLUME.affine, (16, 18, 14))
    for seed, name in enumerate(("fixed", "moving", "t2")):
        write_image(tmp_path / f"{name}.nii.gz", make_image(grid, seed), grid)
    middle = grid.affine @ [8, 9, 7, 1] * [-1, -1, 1, 1]
    for side in ("fixed", "moving"):
        (tmp_path / f"{side}_points.csv").write_text("x,y,z\n" + ",".join(map(str, middle[:3])))
    write_affine(tmp_path / "t2_to_t1_0GenericAffine.mat", np.eye(4))

    for words in commands("transforms.md"):
        run(words)
    for block in blocks("transforms.md", "python"):
        exec(compile(block, "transforms.md", "exec"), {})

    assert {"out", "warped.nii.gz", "fixed_in_moving.nii.gz", "moving_points_in_fixed.csv", "w.nii.gz"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_page_of_cohorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_rows(tmp_path, 2)
    (tmp_path / "pairs.csv").write_text("fixed,moving\n" + "\n".join(f"{r['fixed']},{r['moving']}" for r in rows))
    lists = {"registration_val": [{side: row[side] for side in ("fixed", "moving")} for row in rows], "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    shutil.copy(rows[0]["fixed"], tmp_path / "atlas.nii.gz")
    subject = tmp_path / "sub-01" / "anat"
    subject.mkdir(parents=True)
    shutil.copy(rows[1]["moving"], subject / "sub-01_T1w.nii.gz")

    with as_it_was():
        for words in commands("cohort.md"):
            run([*words, *QUICK])

    found = {folder: [row["status"] for row in table(tmp_path / folder).values()] for folder in tables_of(tmp_path)}
    assert found == {"results": ["done"] * 2, "learn2reg": ["done"] * 2, "to_atlas": ["done"]}


def tables_of(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("*/metrics.csv")]
