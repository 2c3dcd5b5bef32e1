# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo invert``: the way back, with its certificate."""

from __future__ import annotations

import click

from monai_nodeo.apps.cli._numbers import echo_figures
from monai_nodeo.apps.cli._options import is_registration

__all__ = ["command"]


@click.command()
@click.option("-t", "--transform", required=True, help="Transform to invert: a file, or the folder of a registration.")
@click.option("-o", "--output", required=True, help="File of the inverse; its name says the format, see convert.")
@click.option("-r", "--reference", help="Image whose grid the inverse gets where it is one field; the moving image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def command(transform: str, output: str, reference: str | None, as_json: bool) -> None:
    """Invert a transform and say how well it went.

    The flow of a registration is integrated back, on the grid of the moving image. Fields of other tools are inverted
    on their own grid, by a fixed point; where a field folds, several points share one place and there is no inverse.
    """
    from monai_nodeo.files import ImageGrid, check_transform_target, read_transform, write_transform

    check_transform_target(output)
    grid = ImageGrid.from_file(reference) if reference else None
    if is_registration(transform):
        from monai_nodeo.registration.folder_transform import certificate_of_folder, transform_of_folder

        write_transform(output, transform_of_folder(transform, inverse=True, grid=grid), grid)
        certificates = [certificate_of_folder(transform)]
    else:
        import torch

        from monai_nodeo.flows.field_inversion import invert_transform
        from monai_nodeo.metrics.certificate import certify_field

        inverse, inversions = invert_transform(read_transform(transform))
        write_transform(output, inverse, grid)
        certificates = [
            certify_field(
                torch.tensor(step.ddf), torch.tensor(step.grid.affine[:3, : step.grid.spatial_dims]), inversion
            )
            for step, inversion in inversions
        ]
    echo_figures({"file": output, "field": [certificate.to_dict() for certificate in certificates]}, as_json)
    for certificate in certificates:
        if not certificate.invertible:
            why = "Where it folds, the inverse holds the nearest point."
            if not certificate.folded_cells:
                why = "It changes too fast for its grid; of a registration, invert the folder, which holds the flow."
            click.echo(f"warning: {certificate.verdict} {why}", err=True)
