# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo report``: the pages of finished registrations, made again from their files."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command()
@click.argument("output", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(output: Path) -> None:
    """Make the reports of the registrations in OUT.

    OUT is the folder of one pair, which gets its report.html, or that of a run, whose pairs get theirs and which gets
    an index.html over all of them. The images that were registered have to be where they were.
    """
    from monai_nodeo.report import remake_report, write_index

    if (output / "metrics.json").exists():
        click.echo(remake_report(output))
        return
    failures = []
    for figures in sorted(output.glob("*/metrics.json")):
        try:
            click.echo(remake_report(figures.parent))
        except (ValueError, OSError) as error:
            failures.append(str(error))
    click.echo(write_index(output))
    if failures:
        raise click.ClickException("\n".join([f"{len(failures)} reports could not be made:", *failures]))
