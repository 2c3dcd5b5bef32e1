# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo info``: what is in a transform file."""

from __future__ import annotations

import click

from monai_nodeo.apps.cli._numbers import echo_figures
from monai_nodeo.apps.cli._options import file_of

__all__ = ["command"]


@click.command()
@click.argument("transform", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def command(transform: str, as_json: bool) -> None:
    """Show the steps of a transform: affine parameters, grids, displacements, folds.

    Step 1 is what a point of the fixed image meets first.
    """
    from monai_nodeo.files import read_transform
    from monai_nodeo.metrics.transform_figures import transform_figures

    steps = transform_figures(read_transform(file_of(transform)))
    echo_figures({"file": transform, "step": steps}, as_json)
