# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The options that the commands which register have in common."""

from __future__ import annotations

import json
import logging
from typing import Any

import click

from monai_nodeo.registration.presets import preset_names
from monai_nodeo.registration.settings import Settings

__all__ = ["PRESET", "SET", "configure_logging", "settings_of"]

PRESET = click.option("--preset", type=click.Choice(preset_names()), help="Settings other than the default's.")
SET = click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Any setting; may be repeated.")


def settings_of(spatial_dims: int, preset: str | None, changes: tuple[str, ...], **others: Any) -> Settings:
    """The settings of a preset with the changes of a command line.

    Args:
        spatial_dims: 2 or 3.
        preset: its name.
        changes: ``NAME=VALUE``, the value as JSON has it, or a word.
        others: settings that have an option of their own; None: not given.
    """
    given = {name: value for name, value in others.items() if value is not None}
    return Settings.preset(preset, spatial_dims, **given, **dict(_parsed(text) for text in changes))


def configure_logging(quiet: bool) -> None:
    """What is logged goes to the terminal; with ``quiet``, errors only."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR if quiet else logging.INFO)
    logging.getLogger("ignite").setLevel(logging.ERROR)


def _parsed(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE.", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
