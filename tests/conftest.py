# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

DATA_VARIABLE = "MONAI_NODEO_DATA"
DATA_BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start every test from one state of torch's generators; leave them and the import path as they were."""
    monkeypatch.setattr(sys, "path", sys.path.copy())  # a workflow adds the bundle's folder when it runs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def oasis() -> Path:
    """Folder of the OASIS data (``oasis2d/``, ``oasis3d/``, ``pairs2d.json``)."""
    folder = Path(os.environ.get(DATA_VARIABLE, DATA_BESIDE_CHECKOUT))
    if not (folder / "pairs2d.json").is_file():
        pytest.skip(f"no pairs2d.json in {folder}: set {DATA_VARIABLE} to the folder of the OASIS data")
    return folder


@pytest.fixture(scope="session")
def inputs() -> Path:
    """Folder of small files that break tools, a class each."""
    return _part_of_the_data("inputs")


@pytest.fixture(scope="session")
def domains() -> Path:
    """Folder of real pairs of other anatomies than brains."""
    return _part_of_the_data("domains")


def _part_of_the_data(name: str) -> Path:
    folder = Path(os.environ.get(DATA_VARIABLE, DATA_BESIDE_CHECKOUT)) / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}: set {DATA_VARIABLE} to the folder that holds {name}/")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, as playwright's ``Browser``; a processor draws what a graphics card would."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes a NIfTI file and tells its path."""

    def _save(name: str, data: np.ndarray, affine: np.ndarray | None = None) -> str:
        nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), tmp_path / name)
        return str(tmp_path / name)

    return _save
