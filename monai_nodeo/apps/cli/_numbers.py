# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers on the terminal: JSON, or a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

__all__ = ["echo_figures"]


def echo_figures(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures; nested ones get names like ``after dice 17``."""
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    lines = list(_lines("", figures))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _lines(f"{name} {key}".strip().replace("_", " "), inner)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping | list):
        for number, inner in enumerate(value, start=1):
            yield from _lines(f"{name} {number}", inner)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "  ".join(_text(item) for item in value)
    if value is None:
        return "-"
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
