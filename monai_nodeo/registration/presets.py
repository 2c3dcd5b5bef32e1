# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the settings are: in ``bundle/configs/inference.json``, and as differences in the presets, ``configs/*.json``.

Plain JSON, read without MONAI.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["bundle_dir", "preset_files", "preset_names", "preset_values"]

_2D = "_2d"
_SETTINGS = "settings"


def bundle_dir() -> Path:
    """Folder of the MONAI bundle."""
    return _folder("bundle")


def preset_names() -> list[str]:
    """Names of the presets: the files in ``configs/``; those that end in ``_2d`` are the other half of one."""
    names = {path.name.removesuffix(".json").removesuffix(_2D) for path in _folder("configs").glob("*.json")}
    return sorted(names)


def preset_files(spatial_dims: int, preset: str | None = None) -> list[Path]:
    """The bundle's config, the differences for slices, then the preset, and its differences for slices.

    Args:
        spatial_dims: 2 or 3.
        preset: one of :py:func:`preset_names`.

    Raises:
        ValueError: lists the presets that there are.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims!r}, expected 2 for slices or 3 for volumes.")
    if preset is not None and preset not in preset_names():
        raise ValueError(f"there is no preset {preset!r}; known are {', '.join(preset_names())}.")
    names = [_folder("bundle") / "configs" / "inference"]
    names += [] if preset is None else [_folder("configs") / preset]
    endings = ["", _2D] if spatial_dims == 2 else [""]
    files_ = [name.with_name(f"{name.name}{ending}.json") for name in names for ending in endings]
    return [file for file in files_ if file.exists()]


def preset_values(spatial_dims: int, preset: str | None = None) -> dict[str, Any]:
    """The settings that these files add up to."""
    values: dict[str, Any] = {}
    for file in preset_files(spatial_dims, preset):
        config = json.loads(file.read_text(encoding="utf-8"))
        values |= config.get(_SETTINGS, {})
        values |= {id.removeprefix(f"{_SETTINGS}::"): value for id, value in config.items() if "::" in id}
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _folder(name: str) -> Path:
    package = Path(str(files("monai_nodeo")))
    installed, checkout = package / name, package.parent / name
    return installed if installed.is_dir() else checkout
