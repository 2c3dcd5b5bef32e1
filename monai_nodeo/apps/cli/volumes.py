# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo volumes``: how much structures grew or shrank from the fixed to the moving image."""

from __future__ import annotations

import csv
from pathlib import Path

import click

from monai_nodeo.apps.cli._options import DEVICE, configure_logging

__all__ = ["command"]


@click.command()
@click.argument("registration", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--labels", metavar="FILE", help="Label map of the fixed image; by default the one it came with.")
@click.option(
    "--uncertainty",
    type=click.IntRange(min=2),
    metavar="N",
    help="Register N more times, with other noise, voxels and starts, for standard deviations.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file; by default OUT/volumes.csv.")
@DEVICE
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
def command(
    registration: Path,
    labels: str | None,
    uncertainty: int | None,
    output: Path | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Integrate the change of volume of the registration in OUT over each label.

    Volumes are mm^3, of slices areas in mm^2; changes are per cent of the volume in the fixed image. The registration
    is best made with --symmetric, the earlier visit as the fixed image.
    """
    configure_logging(quiet)
    from monai_nodeo.apps.volumes import label_volumes
    from monai_nodeo.files import atomic_path, check_folder
    from monai_nodeo.registration import PairInferer, Registration

    target = output or registration / "volumes.csv"
    check_folder(target)
    found = Registration.load(registration)
    if found.pair is None:
        raise ValueError(f"{registration}: the images that were registered are not where they were.")
    label = labels or found.pair.fixed.label
    if label is None:
        raise click.UsageError("the registration was made without --fixed-label; give --labels.")
    samples = []
    if uncertainty:
        samples = PairInferer(found.settings, handlers=()).samples(found, uncertainty, device)
    unit = "mm3" if found.flow.grid.spatial_dims == 3 else "mm2"
    rows = [
        {
            "label": item.label,
            f"fixed_{unit}": f"{item.fixed:.6g}",
            f"moving_{unit}": f"{item.moving:.6g}",
            "change_percent": f"{item.change:.4f}",
            "change_percent_by_warping": f"{item.warped_change:.4f}",
            "standard_deviation": "" if item.deviation is None else f"{item.deviation:.4f}",
        }
        for item in label_volumes(found, label, samples, warped=True)
    ]
    with atomic_path(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if not quiet:
        for row in rows:
            spread = f" +- {row['standard_deviation']}" if row["standard_deviation"] else ""
            click.echo(f"label {row['label']}: {row['change_percent']} %{spread}")
        click.echo(target)
