# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo template``: the mean image of a group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from monai_nodeo.apps.cli._options import (
    DEVICE,
    PRESET,
    SET,
    check_files,
    configure_logging,
    engine_of,
    engine_options,
    settings_of,
)
from monai_nodeo.apps.cli._status import told_to_go_on

__all__ = ["command"]

_SOME_FAILED = 3


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--key", help="Which list of a JSON object, as in training.")
@click.option("--start", multiple=True, metavar="FILE", help="Template to start from; its grid is taken.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often all images are registered to the template.")
@click.option("--sharpening", type=click.FloatRange(min=0), help="Against the blur of the mean; 0: none.")
@PRESET
@click.option("--init", "initial_transform", metavar="[auto|none|moments|rigid|affine]", help="Affine start.")
@engine_options
@DEVICE
@click.option("--report/--no-report", default=False, help="Make the pages of the last round.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@SET
def command(images: tuple[str, ...], output: Path, quiet: bool, **given: Any) -> None:
    """Build the mean image of IMAGES, in shape and intensity, whatever their order.

    IMAGES are files, or one list: JSON or CSV with "image", and "label" and "mask" if there are any, or a MONAI data
    list with --key. The same command again goes on where an earlier run ended. The exit status is 3 if images were
    left out.
    """
    configure_logging(quiet)
    check_files(image=images, start=given["start"])
    from monai_nodeo.data.lists import group, spatial_dims_of
    from monai_nodeo.files import check_no_file, no_empty_folder

    check_no_file(output)  # before torch is imported
    rows = group(images, given["key"])
    dims = spatial_dims_of(rows, "moving")
    settings = settings_of(dims, given["preset"], given["changes"], initial_transform=given["initial_transform"])
    chosen = {name: given[name] for name in ("rounds", "sharpening") if given[name] is not None}
    engine = engine_of(given)
    with no_empty_folder(output), told_to_go_on(output):
        from monai_nodeo.apps.templates.build import build_template

        template = build_template(
            rows,
            output,
            settings,
            start=list(given["start"]) or None,
            engine=engine,
            batch=given["batch"],
            device=given["device"],
            report=given["report"],
            **chosen,
        )
    if not quiet:
        left_out = f"; left out: {', '.join(template.failures)}" if template.failures else ""
        click.echo(f"template of {len(template.figures['images'])} of {len(rows)} images{left_out}")
        click.echo(f"results are in {output}")
    if template.failures:
        sys.exit(_SOME_FAILED)
