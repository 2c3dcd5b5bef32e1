# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The module of Slicer without Slicer: its logic with the real command, its panel with mocks of all that Slicer has."""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import SimpleITK as sitk
from grids import OBLIQUE, interior, make_image

from monai_nodeo.files import ImageGrid, write_image, write_labels
from monai_nodeo.registration.presets import preset_names

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--device", "cpu", "--init", "none", "--no-report"]
QUICK += [w for s in ("iterations=[2,2]", "shrink_factors=[2,1]", "dense_iterations=0") for w in ("--set", s)]
GRID = ImageGrid(OBLIQUE, (16, 18, 14))


@pytest.fixture(autouse=True)
def _where_slicer_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "slicer" / "MonaiNodeo"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, Any]:
    """Volumes and labels as images of ITK, points as what Slicer writes."""
    found: dict[str, Any] = {}
    middle = GRID.affine @ [8, 9, 7, 1] * [-1, -1, 1, 1]
    for seed, side in enumerate(("fixed", "moving")):
        write_image(tmp_path / "image.nii.gz", make_image(GRID, seed), GRID)
        write_labels(tmp_path / "label.nii.gz", np.digitize(make_image(GRID, seed), [500]), GRID)
        found[side] = sitk.ReadImage(tmp_path / "image.nii.gz")
        found[f"{side}_label"] = sitk.ReadImage(tmp_path / "label.nii.gz")
        controls = [{"position": (middle[:3] + seed).tolist()}]
        found[f"{side}_landmarks"] = {
            "markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls}]
        }
    return found


def save(node: Any, path: str) -> None:
    if isinstance(node, dict):
        Path(path).write_text(json.dumps(node), encoding="utf-8")
    else:
        sitk.WriteImage(node, path)


def load(kind: str, path: str) -> Any:
    return sitk.ReadTransform(path) if kind == "transform" else sitk.ReadImage(path)


def ended(process: Any) -> dict[str, Any]:
    while (found := process.poll()) is None:
        time.sleep(0.05)
    return found


@pytest.mark.long
def test_nodes_are_registered_by_the_command(nodes):
    from MonaiNodeoLib.command import RegistrationProcess, command_of

    lines: list[str] = []
    process = RegistrationProcess(command_of(sys.executable), save, load, lines.append)
    process.start(nodes, options=QUICK)
    folder = process._folder
    assert {file.name for file in folder.iterdir()} > {"fixed.nrrd", "moving_label.nrrd", "fixed_landmarks.mrk.json"}
    found = ended(process)
    assert lines[0].startswith("registering")
    assert lines[-1].startswith("results are in")
    assert not folder.exists()
    by_itk = sitk.Resample(nodes["moving"], nodes["fixed"], found["transform"], sitk.sitkLinear)
    pair = (interior(sitk.GetArrayFromImage(image).astype(float), 3) for image in (found["volume"], by_itk))
    np.testing.assert_allclose(*pair, atol=0.5)
    assert set(np.unique(sitk.GetArrayFromImage(found["label"]))) <= {0, 1}


def test_cancel_and_errors(nodes):
    from MonaiNodeoLib.command import PRESETS, RegistrationError, RegistrationProcess, command_of

    assert list(PRESETS) == preset_names()
    assert [command_of(x)[1:] for x in ("", r"C:\env\Scripts\monai-nodeo.exe", "/env/bin/python3")] == [
        [],
        [],
        ["-m", "monai_nodeo"],
    ]
    process = RegistrationProcess(command_of(sys.executable), save, load)
    process.start(nodes, "accurate")
    child, folder = process._process, process._folder
    with pytest.raises(RegistrationError, match="is running"):
        process.start(nodes)
    process.cancel()
    assert child.returncode != 0
    assert not process.running
    assert not folder.exists()

    process.start(nodes, options=["--preset", "none"])
    with pytest.raises(RegistrationError, match=r"Error: .*none"):
        ended(process)
    with pytest.raises(RegistrationError, match="moving volume is missing"):
        process.start({"fixed": nodes["fixed"], "moving": None})
    with pytest.raises(RegistrationError, match="nowhere cannot be started"):
        RegistrationProcess(["nowhere"], save, load).start(nodes)


class PanelOfSlicer:
    """What a module's panel inherits."""

    def setup(self) -> None:
        self.layout = MagicMock()


def test_panel(nodes, tmp_path, monkeypatch):
    """Its buttons and its timer; the command prints its help only, where a run has left results."""
    slicer, others = MagicMock(), MagicMock()
    bases = MagicMock(ScriptedLoadableModule=object, ScriptedLoadableModuleWidget=PanelOfSlicer)
    modules = {"slicer": slicer, "slicer.ScriptedLoadableModule": bases, "qt": others.qt, "ctk": others.ctk}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for widget in (slicer.qMRMLNodeComboBox, others.qt.QPushButton, others.ctk.ctkPathLineEdit):
        widget.side_effect = lambda *_: MagicMock()
    slicer.util.startupEnvironment.return_value = dict(os.environ)
    slicer.util.tryWithErrorDisplay.side_effect = lambda *_, **__: nullcontext()
    slicer.util.exportNode.side_effect = lambda node, path, world: save(node, path) or world
    from MonaiNodeo import MonaiNodeoWidget

    panel = MonaiNodeoWidget()
    panel.setup()
    assert (panel.register.enabled, panel.cancel.enabled) == (True, False)
    for role, selector in panel.selectors.items():
        selector.currentNode.return_value = nodes[role]
    panel.preset.currentText, panel.options.text = "fast", "--help"
    panel.program.currentPath, panel.output.currentPath = sys.executable, str(tmp_path)
    (tmp_path / "warped.nii.gz").touch()
    panel.onRegister()
    assert (panel.register.enabled, panel.cancel.enabled) == (False, True)
    while panel.logic.running:
        panel.onPoll()
        time.sleep(0.05)
    assert panel.lines.appendPlainText.call_args_list[0].args[0].startswith("Usage:")
    slicer.util.loadVolume.assert_called_once_with(str(tmp_path / "warped.nii.gz"))
    slicer.mrmlScene.RemoveNode.assert_called_once()
    slicer.util.setSliceViewerLayers.assert_called_once()
    assert panel.register.enabled
    panel.cleanup()
