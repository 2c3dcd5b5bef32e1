# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundle as the MONAI model zoo takes it: a folder of its name, and a zip of the folder.

python zoo/build.py [FOLDER]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from monai_nodeo.registration import Settings
from monai_nodeo.registration.named_parts import make_velocity

NAME = "nodeo_image_registration"
BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def build(folder: Path) -> Path:
    """Write the bundle into a folder.

    Args:
        folder: made if it does not exist; an earlier bundle in it is replaced.

    Returns:
        The zip, ``folder/NAME_vVERSION.zip``; the bundle itself is ``folder/NAME``.
    """
    target = folder / NAME
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(BUNDLE, target, ignore=shutil.ignore_patterns("__pycache__", "*.py*"))
    (target / "models").mkdir()
    # what every optimisation starts from: no motion
    torch.save(make_velocity(Settings.preset()).state_dict(), target / "models" / "model.pt")
    version = json.loads((target / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    return Path(shutil.make_archive(str(folder / f"{NAME}_v{version}"), "zip", folder, NAME))


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
