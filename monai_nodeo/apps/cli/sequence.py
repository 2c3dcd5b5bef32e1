# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo sequence``: the motion of a series."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import click

from monai_nodeo.apps.cli._options import DEVICE, PRESET, REFERENCE, SET, check_files, configure_logging, settings_of
from monai_nodeo.extras import report_or_not

__all__ = ["command"]


class _Times(click.ParamType):
    """Numbers with commas between them, or a file."""

    name = "FILE|t,t,..."

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str | list[float]:
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            if Path(value).expanduser().is_file():
                return value
            self.fail(f"{value!r} is neither a list of times, such as 0,0.1,0.3, nor a file.", param, ctx)


@click.command()
@click.argument("series", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--times", type=_Times(), help="Of the frames; by default those of the header, or 0,1,2,...")
@click.option(
    "--reference",
    type=REFERENCE,
    default=0,
    show_default=True,
    help="Where the frames are carried: to a frame, from 0, or to the mean shape of all.",
)
@click.option("--periodic", type=float, metavar="PERIOD", help="Time after which the motion begins again.")
@click.option(
    "--labels", metavar="FILE", help="Label map of the reference frame, that is followed; with mean, of frame 0."
)
@click.option("--points", metavar="FILE", help="CSV of points of the same frame, LPS mm, that are followed.")
@click.option("--animate", metavar="FILE", help="Film of the frames and the corrected ones: .gif, or a folder for PNG.")
@click.option("--report/--no-report", default=True, help="Make report.html, with the curves.")
@PRESET
@DEVICE
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@SET
def command(
    series: tuple[str, ...],
    output: Path,
    times: str | list[float] | None,
    reference: int | str,
    periodic: float | None,
    labels: str | None,
    points: str | None,
    animate: str | None,
    report: bool,
    preset: str | None,
    device: str | None,
    quiet: bool,
    changes: tuple[tuple[str, Any], ...],
) -> None:
    """Find one flow through all frames of SERIES and carry every frame to one of them, or to their mean shape.

    SERIES is a 4D file, a folder with a file for each frame, a table (.csv, .tsv) with the columns image and time, or
    the files themselves. --set changes any setting of the pairs that those of the series are made of.
    """
    configure_logging(quiet)
    report = report_or_not(report)
    if animate and Path(animate).suffix not in ("", ".gif"):
        raise click.BadParameter(f"{animate!r} is neither a .gif nor a folder.", param_hint="--animate")
    check_files(series=series, labels=labels, points=points)
    from monai_nodeo.data.series import open_series
    from monai_nodeo.files import check_output_dir, no_empty_folder, read_points

    table = read_points(points) if points else None
    found = open_series(series[0] if len(series) == 1 else series, times)
    base = found.base(reference)
    found.span(periodic)  # too short a period is told now, before what is slow is imported
    with no_empty_folder(output):
        folder = check_output_dir(output)
        from monai_nodeo.registration import ProgressBar, register_sequence

        settings = settings_of(found.frame(base).ndim - 1, preset, changes)
        sequence = register_sequence(
            found,
            settings=settings,
            reference=reference,
            periodic=periodic,
            label=labels,
            device=device,
            handlers=[] if quiet else [ProgressBar],
        )
        figures = sequence.save(folder, table)
        if report:
            from monai_nodeo.report import write_sequence_report

            write_sequence_report(sequence, figures, folder)
        if animate:
            from monai_nodeo.report.film import write_sequence_film

            write_sequence_film(sequence, Path(animate))
    if not quiet:
        moved = [row for row in figures["frames"] if row["frame"] != sequence.reference]
        before, after = (fmean(row[f"similarity_{side}"] for row in moved) for side in ("before", "after"))
        click.echo(f"{len(figures['frames'])} frames: similarity loss {before:.4f} -> {after:.4f}")
        click.echo(f"results are in {folder}")
