# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundle as the MONAI model zoo gets it."""

import json
import runpy
import shutil
import unittest
from pathlib import Path

import pytest
import torch
from cohorts import as_it_was
from monai.bundle import load

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore:No hash value:UserWarning")

ZOO = Path(__file__).resolve().parents[1] / "zoo"
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
