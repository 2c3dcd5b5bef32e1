# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The options that the commands which register have in common."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any

import click

from monai_nodeo.data.keys import images_of
from monai_nodeo.registration.presets import preset_names
from monai_nodeo.registration.settings import Settings

__all__ = [
    "DEVICE",
    "MEMORY",
    "NUMBERS",
    "PRESET",
    "REFERENCE",
    "SET",
    "SMOOTHNESS",
    "STARTS",
    "Bytes",
    "check_files",
    "configure_logging",
    "engine_of",
    "engine_options",
    "file_of",
    "is_registration",
    "settings_of",
]

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?([kKmMgGtT])[bB]?")
_NAMES = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
STARTS = ("auto", "none", "moments", "rigid", "affine")
PRESET = click.option("--preset", type=click.Choice(preset_names()), help="Settings other than the default's.")


class _Device(click.ParamType):
    """A name that torch knows."""

    name = "DEVICE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _NAMES.fullmatch(value):
            self.fail(f"{value!r} is no device; expected cpu, cuda or cuda:1.", param, ctx)
        return str(value)


class _Reference(click.ParamType):
    """The number of a frame of a series, or a word."""

    name = "[mean|NUMBER]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value == "mean":
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither mean nor the number of a frame.", param, ctx)


REFERENCE = _Reference()


class _Setting(click.ParamType):
    """The value as JSON has it, or a word."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, separator, text = value.partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not of the form NAME=VALUE.", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class _Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(word) for word in value.split(","))
        except ValueError:
            self.fail(f"{value!r} are no numbers with commas between them, as in 1,.5.", param, ctx)


class Bytes(click.ParamType):
    """A number and its unit."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _SIZE.fullmatch(str(value))
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no size of memory; expected one such as 4GB or 800MB.", param, ctx)
        return round(float(found[1]) * {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[found[2].upper()])


class _Smoothness(click.ParamType):
    """A number, or a word for one."""

    name = "[stiff|medium|free|NUMBER]"
    _WORDS = {"stiff": 0.1, "medium": 0.25, "free": 0.45}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(self._WORDS.get(value, value))
        except ValueError:
            found = math.nan
        if not 0 < found < math.inf:
            self.fail(f"{value!r} is none of {', '.join(self._WORDS)}, and no number above 0.", param, ctx)
        return found


NUMBERS = _Numbers()
SMOOTHNESS = _Smoothness()
MEMORY = click.option("--memory", type=Bytes(), help="Stay within it, with leaner settings if it has to be: 4GB.")
DEVICE = click.option("--device", type=_Device(), help="cpu, cuda, cuda:1; by default a GPU if there is one.")
_ENGINE = (
    click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine, shared out to its GPUs."),
    click.option("--threads", type=click.IntRange(min=1), help="Threads of a worker; by default the cores shared out."),
    click.option("--batch", type=click.IntRange(min=1), default=1, help="Pairs of one shape optimised together."),
    click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask cluster that is there."),
    click.option("--scheduler-file", type=click.Path(exists=True), help="The same, by the file of its scheduler."),
)
SET = click.option("--set", "changes", multiple=True, type=_Setting(), help="Any setting; may be repeated.")


def settings_of(spatial_dims: int, preset: str | None, changes: tuple[tuple[str, Any], ...], **others: Any) -> Settings:
    """The settings of a preset with the changes of a command line.

    Args:
        spatial_dims: 2 or 3.
        preset: its name.
        changes: names and values, of ``--set``.
        others: settings that have an option of their own; None: not given.
    """
    given = {name: value for name, value in others.items() if value is not None}
    return Settings.preset(preset, spatial_dims).replace(**given | dict(changes))


def check_files(**paths: Any) -> None:
    """Tell a mistyped file before anything slow is imported; what reads the files looks at them again.

    Args:
        paths: what errors call them -> a path, several, or None.

    Raises:
        FileNotFoundError: when there is none of that name.
    """
    for key, path in [(key, path) for key, value in paths.items() for path in images_of(value) if path is not None]:
        file = Path(expanduser(path))
        if not file.exists() and not ("#" in file.name and Path(str(file).rpartition("#")[0]).is_dir()):
            raise FileNotFoundError(f"{key} {path}: there is no such file; check the path.")


def engine_options(command: Any) -> Any:
    """Add the options of `engine_of` to a command."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def engine_of(given: Mapping[str, Any]) -> Any:
    """What registers the pairs: this process, workers that it starts, or a cluster that is there."""
    chosen = [name for name in ("workers", "scheduler", "scheduler_file") if given[name] is not None]
    if len(chosen) > 1:
        raise click.UsageError(f"--{' and --'.join(chosen).replace('_', '-')} exclude each other.")
    threads, device = given["threads"], given["device"]
    if not chosen:
        from monai_nodeo.apps.cohort.run import InThisProcess

        return InThisProcess(threads)
    from monai_nodeo.apps.cohort.workers import ExistingCluster, LocalWorkers

    if given["workers"]:
        return LocalWorkers(given["workers"], threads, device)
    return ExistingCluster(
        given["scheduler"], given["scheduler_file"], threads, needs_gpu=str(device).startswith("cuda")
    )


def is_registration(name: str) -> bool:
    """Whether a name is the folder of a registration; a Zarr group is a folder, too."""
    from monai_nodeo.files.ome_zarr import is_zarr

    return Path(name).is_dir() and not is_zarr(Path(name))


def file_of(transform: str) -> str:
    """The file of a transform that is named by its registration's folder.

    Raises:
        ValueError: when it is the folder of a sequence.
    """
    folder = Path(transform)
    if (folder / "displacement").is_dir():
        raise ValueError(
            f"{folder} is of a sequence, expected a pair; give the field of a frame, such as "
            f"{folder / 'displacement' / '0001.nii.gz'}."
        )
    return str(folder / "transform.h5") if is_registration(transform) else transform


def configure_logging(quiet: bool) -> None:
    """What is logged goes to the standard error; with ``quiet``, warnings and errors only."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if quiet else logging.INFO)
    # ignite announces each exception, which is told by who catches it
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
