# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo invert``: the way back, with its residual."""

from __future__ import annotations

import click

from monai_nodeo.cli.figures import echo_figures

__all__ = ["command"]


@click.command()
@click.option("-t", "--transform", required=True, help="Transform to invert.")
@click.option("-o", "--output", required=True, help="File of the inverse; its name says the format, see convert.")
@click.option("-r", "--reference", help="Image whose grid the inverse gets where it is one field; the moving image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def command(transform: str, output: str, reference: str | None, as_json: bool) -> None:
    """Invert a transform and say how well it went.

    Fields are inverted on their own grid, by fixed-point iteration. The residual tells, in voxels, how far a point is
    from home after both ways. Where a field folds, several points share one place and there is no inverse.
    """
    from monai_nodeo.files import ImageGrid, check_transform_target, read_transform, write_transform
    from monai_nodeo.flows.inversion import invert_transform

    check_transform_target(output)
    grid = ImageGrid.from_file(reference) if reference else None
    inverse, fields = invert_transform(read_transform(transform))
    write_transform(output, inverse, grid)
    echo_figures({"file": output, "field": fields}, as_json)
    for figures in fields:
        if figures["voxels_folded"] or figures["voxels_not_converged"]:
            click.echo(
                f"warning: the field folds in {figures['voxels_folded']} voxels; the inverse did not converge in "
                f"{figures['voxels_not_converged']} of {figures['voxels']} and holds the nearest point there.",
                err=True,
            )
