# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the bundle and the presets lie: inside an installed package, beside the package in a checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["bundle_dir", "config_files", "preset_names"]

_2D = "_2d"


def bundle_dir() -> Path:
    """Folder of the MONAI bundle."""
    return _folder("bundle")


def preset_names() -> list[str]:
    """Names of the presets: the files in ``configs/``; those that end in ``_2d`` are the other half of one."""
    names = {path.name.removesuffix(".json").removesuffix(_2D) for path in _folder("configs").glob("*.json")}
    return sorted(names)


def config_files(spatial_dims: int, preset: str | None = None) -> list[Path]:
    """The bundle's config, the settings for slices over it, then the preset, and its settings for slices.

    Args:
        spatial_dims: 2 or 3.
        preset: one of :py:func:`preset_names`.

    Raises:
        ValueError: lists the presets that there are.
    """
    if preset is not None and preset not in preset_names():
        raise ValueError(f"there is no preset {preset!r}; known are {', '.join(preset_names())}.")
    names = [_folder("bundle") / "configs" / "inference"]
    names += [] if preset is None else [_folder("configs") / preset]
    endings = ["", _2D] if spatial_dims == 2 else [""]
    files_ = [name.with_name(f"{name.name}{ending}.json") for name in names for ending in endings]
    return [file for file in files_ if file.exists()]


def _folder(name: str) -> Path:
    package = Path(str(files("monai_nodeo")))
    installed, checkout = package / name, package.parent / name
    return installed if installed.is_dir() else checkout
