# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo cohort``: many pairs, on this machine or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from monai_nodeo.apps.cli._options import DEVICE, PRESET, SET, configure_logging, engine_of, engine_options, settings_of
from monai_nodeo.apps.cli._status import told_to_go_on
from monai_nodeo.extras import report_or_not
from monai_nodeo.registration.settings import Settings

__all__ = ["command", "run", "run_options", "settings_of_run"]

_SOME_FAILED = 3


class _Shard(click.ParamType):
    """``i/n`` with i from 1 to n."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            index, count = (int(part) for part in value.split("/"))
        except ValueError:
            index, count = 0, 0
        if not 1 <= index <= count:
            self.fail(f"{value!r} is no share like 3/8, the third of eight.", param, ctx)
        return index, count


_RUN = (
    PRESET,
    click.option("--init", "initial_transform", metavar="[auto|none|moments|rigid|affine|FILE]", help="Affine start."),
    engine_options,
    DEVICE,
    click.option("--report/--no-report", default=True, help="Make the page of each pair, and one over all."),
    click.option("--quiet", is_flag=True, help="Print warnings and errors only."),
    SET,
)


def run_options(command: Any) -> Any:
    """The options of all commands over many pairs."""
    for option in reversed(_RUN):
        command = option(command)
    return command


@click.command()
@click.argument("pairs", required=False)
@click.option("-f", "--fixed", help="Instead of PAIRS: the image that all others are registered to.")
@click.option("-m", "--moving", metavar="PATTERN", help="The others, as in 'sub-*/anat/*_T1w.nii.gz'.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--key", help="Which list of a JSON object, as in registration_val.")
@click.option("--dataset-dir", help="Where relative paths start; by default at the list's folder.")
@click.option("--shard", type=_Shard(), help="A share of the pairs, for job arrays; all shares with one OUTPUT.")
@run_options
def command(pairs: str | None, output: Path, shard: tuple[int, int] | None, **given: Any) -> None:
    """Register all PAIRS of a list, and go on where an earlier run ended.

    PAIRS is a JSON list, a CSV table with columns fixed and moving, a MONAI data list or the dataset.json of Learn2Reg.
    Pairs that are done are skipped, unless their files or the settings have changed; those that failed are run again.
    The exit status is 3 if pairs failed.
    """
    from monai_nodeo.apps.cohort.storage import usable_folder
    from monai_nodeo.files import no_empty_folder

    configure_logging(given["quiet"])
    rows = _rows(pairs, given)
    index, count = shard or (1, 1)
    settings = settings_of_run(rows, given)
    with no_empty_folder(output):
        run(usable_folder(output), rows, rows[index - 1 :: count], settings, given)


def settings_of_run(rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> Settings:
    """The settings that the options say for these rows."""
    from monai_nodeo.data.lists import spatial_dims_of

    start = given["initial_transform"]
    return settings_of(spatial_dims_of(rows), given["preset"], given["changes"], initial_transform=start)


def run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    mine: Sequence[Mapping[str, Any]],
    settings: Settings,
    given: Mapping[str, Any],
    *more: Any,
    **job: Any,
) -> None:
    """Register pairs and tell what came out; ends the process with status 3 if pairs failed.

    Args:
        folder: of the results.
        rows: of the whole cohort.
        mine: those that this process is to run.
        settings: of the registrations.
        given: what `run_options` were given.
        more: what else results depend on, see `settings_key`.
        job: more of the `Job`.
    """
    from monai_nodeo.apps.cohort.job import Job
    from monai_nodeo.apps.cohort.keys import settings_key
    from monai_nodeo.apps.cohort.run import run_cohort
    from monai_nodeo.apps.cohort.summary import describe

    values = settings.to_dict()
    report = report_or_not(given["report"])
    task = Job(str(folder), values, settings_key(values, *more), given["device"], report=report, **job)
    with told_to_go_on(folder):
        summary = run_cohort(task, rows, mine, engine_of(given), given["batch"])
    for line in describe(summary, folder):
        if not given["quiet"]:
            click.echo(line)
    if summary["failed"]:
        sys.exit(_SOME_FAILED)


def _rows(pairs: str | None, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the list, or of the pattern; their paths are absolute, so that any worker finds them."""
    from monai_nodeo.data.lists import absolute, load_datalist, pairs_to_one

    fixed, moving = given["fixed"], given["moving"]
    if (pairs is None) == (fixed is None) or (fixed is None) != (moving is None):
        raise click.UsageError("give PAIRS, or --fixed IMAGE and --moving PATTERN.")
    return absolute(
        pairs_to_one(fixed, moving) if pairs is None else load_datalist(pairs, given["dataset_dir"], given["key"])
    )
