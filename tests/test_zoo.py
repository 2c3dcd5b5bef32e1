# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundle as the MONAI model zoo gets it."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
import torch
from cohorts import as_it_was, table
from monai.bundle import load

from monai_nodeo.data.examples import example_pair, write_pair

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore:No hash value:UserWarning")

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "zoo"
NAME = "nodeo_image_registration"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the unpacked bundle, and nothing else."""
    archive = runpy.run_path(str(ZOO / "build.py"))["build"](tmp_path / "dist")
    assert archive.name == f"{NAME}_v0.1.0.zip"
    shutil.unpack_archive(archive, tmp_path / "models")
    shutil.rmtree(tmp_path / "dist")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def test_the_zoo_has_nothing_to_complain_about_and_finds_faults(models):
    problems = runpy.run_path(str(ZOO / "verify.py"))["problems"]
    assert problems(models / NAME) == []
    file = models / NAME / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(metadata | {"version": "9.9.9"}), encoding="utf-8")
    assert problems(models / NAME) == ["configs/metadata.json: version 9.9.9 is not in the changelog"]
    file.unlink()
    assert problems(models / NAME) == ["configs/metadata.json: there is no such file"]


def test_monai_loads_the_start_and_the_configs_run(models, monkeypatch):
    with as_it_was():
        network = load(NAME, bundle_dir=models, workflow_type="inference", device="cpu")
    phi = torch.rand(1, 3, *network.image_size)
    assert not network(phi).any()  # no motion

    monkeypatch.setenv("MODELS", str(models))
    case = runpy.run_path(str(ZOO / f"test_{NAME}.py"))["TestNodeoImageRegistration"]
    result = unittest.TestResult()
    case("test_inference_configs").run(result)
    assert [text for _, text in (*result.errors, *result.failures)] == []


@pytest.mark.long
@pytest.mark.parametrize(("dims", "spacing"), [(2, 3.0), (3, 5.0)])
def test_command_of_the_page_registers_a_pair_in_the_unpacked_folder(dims, spacing, models, tmp_path):
    bundle = models / NAME
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    command = shlex.split(re.findall(r"^python (-m monai.bundle run --config_file .*)$", page, re.MULTILINE)[0])
    if dims == 2:
        command[command.index("configs/inference.json")] = re.findall(r'Slices: `--config_file "(.*?)"`', page)[0]
    files = write_pair(example_pair(dims, spacing), tmp_path) | {"out": str(tmp_path / "out")}
    labels = [word for name in ("fixed_label", "moving_label") for word in (f"--{name}", files[name])]
    words = [files.get(word.partition(".nii.gz")[0], word) for word in command]
    before = sorted(bundle.rglob("*"))

    done = subprocess.run(
        [sys.executable, *words, *labels, "--device", "cpu", "--report", "False"],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    (row,) = table(tmp_path / "out").values()
    assert row["status"] == "done"
    assert float(row["dice_mean_after"]) > float(row["dice_mean_before"]) + 0.02
    assert sorted(bundle.rglob("*")) == before
