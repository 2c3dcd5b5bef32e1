# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Words of a config that MONAI evaluates: allowed in config files that are trusted, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_nodeo.registration.presets import bundle_dir, preset_files, preset_names

__all__ = ["EXPRESSION", "RUNS_CODE", "check_safe_files", "check_values"]

EXPRESSION = ("$",)  # of Python, as MONAI writes it
RUNS_CODE = (*EXPRESSION, "%", "_target_")  # also: another file, a component


def check_safe_files(files: Sequence[str | PathLike[str]]) -> None:
    """Refuse config files that could run code; those of the package are its own.

    Args:
        files: of MONAI's config, JSON or YAML.

    Raises:
        ValueError: when one holds an expression, a component or another file; names the id.
    """
    bundle = bundle_dir().resolve()
    own = {file.resolve() for name in preset_names() for dims in (2, 3) for file in preset_files(dims, name)}
    for file in files:
        resolved = Path(expanduser(file)).resolve()
        if not resolved.is_relative_to(bundle) and resolved not in own:
            check_values(str(file), ConfigParser.load_config_file(file), RUNS_CODE)


def check_values(name: str, value: Any, forbidden: tuple[str, ...], id: str = "") -> None:
    """Find words within a config that MONAI would do more with than read.

    Args:
        name: where the value is from, for messages.
        value: of any kind, a config or a part of it.
        forbidden: how such words begin.
        id: of the value.

    Raises:
        ValueError: names the first such word.
    """
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, item in inner:
        for text in (key, item):
            if isinstance(text, str) and text.startswith(forbidden):
                raise ValueError(
                    f"{name} holds {text!r} at {id + str(key)!r}, which could run code; expressions belong in config "
                    "files that you trust, used without safe."
                )
        check_values(name, item, forbidden, f"{id}{key}#")
