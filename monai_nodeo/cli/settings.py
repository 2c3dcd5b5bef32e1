# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The option ``--set ID=VALUE`` of the commands that run the bundle."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["parse_setting"]

_JSON_WORDS = {"true": True, "false": False, "null": None}


def parse_setting(text: str) -> tuple[str, Any]:
    """An id and its value, read as ``monai.bundle run`` reads the words of its own command line, or a word of JSON."""
    from fire.parser import DefaultParseValue

    id, separator, value = text.partition("=")
    if not separator or not id:
        raise click.BadParameter(f"{text!r} is not of the form ID=VALUE.", param_hint="--set")
    return id, _JSON_WORDS[value] if value in _JSON_WORDS else DefaultParseValue(value)
