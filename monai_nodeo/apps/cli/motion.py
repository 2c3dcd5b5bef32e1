# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo motion``: motion correction of a series."""

from __future__ import annotations

from pathlib import Path

import click

from monai_nodeo.apps.cli._options import REFERENCE, check_files, configure_logging

__all__ = ["command"]


@click.command()
@click.argument("series", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--reference",
    type=REFERENCE,
    default="mean",
    show_default=True,
    help="Where the frames are put: in the mean, or a frame, from 0.",
)
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
def command(series: tuple[str, ...], output: Path, reference: str | int, quiet: bool) -> None:
    """Take the motion of the head out of SERIES, and tell it.

    SERIES is a 4D file, a folder with a file for each frame, a table (.csv, .tsv) with the columns image and time, or
    the files themselves; volumes on one grid and of one contrast. The motion is rigid; for any other, see sequence.
    """
    configure_logging(quiet)
    check_files(series=series)
    from monai_nodeo.data.series import open_series
    from monai_nodeo.files import check_output_dir, no_empty_folder

    found = open_series(series[0] if len(series) == 1 else series)
    found.base(reference)
    with no_empty_folder(output):
        folder = check_output_dir(output)
        from monai_nodeo.apps.motion.correction import correct_motion

        figures = correct_motion(found, reference).save(folder)
    if not quiet:
        mean, most = (figures[f"framewise_displacement_{which}"] for which in ("mean", "max"))
        click.echo(f"{figures['frames']} frames: framewise displacement {mean:.3f} mm, at most {most:.3f} mm")
        click.echo(f"results are in {folder}")
