# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo propagate``: labels of an image from atlases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from monai_nodeo.apps.cli._options import (
    DEVICE,
    PRESET,
    SET,
    STARTS,
    check_files,
    configure_logging,
    engine_of,
    engine_options,
    settings_of,
)
from monai_nodeo.apps.cli._status import told_to_go_on
from monai_nodeo.data.lists import ATLAS_NAMES

__all__ = ["command"]

_SOME_FAILED = 3


@click.command()
@click.argument("image")
@click.option("--atlases", required=True, metavar="DIR|LIST", help="A folder of folders, or a list.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--names", nargs=2, default=ATLAS_NAMES, show_default=True, help="Files in the folder of an atlas.")
@click.option("--key", help="Which list of a JSON object, as in training.")
@click.option(
    "--fusion",
    type=click.Choice(["local", "majority", "staple"]),
    default="local",
    show_default=True,
    help="local: votes weighted by how alike the images are around a voxel.",
)
@click.option("--best", type=click.IntRange(min=1), metavar="N", help="Take the N most similar atlases; default: all.")
@click.option("--label", help="True label map of IMAGE, for Dice and HD95.")
@click.option("--probabilities", is_flag=True, help="Write the probability of each label, too.")
@PRESET
@click.option("--init", "initial_transform", metavar=f"[{'|'.join(STARTS)}|FILE]", help="Affine start.")
@engine_options
@DEVICE
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@SET
def command(image: str, atlases: str, output: Path, quiet: bool, **given: Any) -> None:
    """Label IMAGE by atlases: images whose labels are known.

    Each atlas is registered to IMAGE and brings its labels along; then they are fused. Atlases are folders in a folder,
    with the files of --names, or a list: JSON or CSV with "image" and "label", a MONAI data list or dataset.json with
    --key, or pairs, whose moving images are taken. IMAGE itself may be among them and is left out. The same command
    again goes on where an earlier run ended; another fusion takes the registrations that are there. The exit status is
    3 if atlases failed.
    """
    configure_logging(quiet)
    start = given["initial_transform"]
    check_files(image=image, atlases=atlases, label=given["label"], init=None if start in STARTS else start)
    from monai_nodeo.data.lists import atlases_to_one, check_best
    from monai_nodeo.files import ImageGrid, check_no_file, no_empty_folder

    check_no_file(output)  # before torch is imported
    rows = atlases_to_one(image, atlases, given["names"], given["key"])
    check_best(given["best"], rows)
    settings = settings_of(
        ImageGrid.from_file(image).spatial_dims,
        given["preset"],
        given["changes"],
        initial_transform=start,
    )
    engine, registrations = engine_of(given), output / "registrations"
    with no_empty_folder(registrations), told_to_go_on(output):
        from monai_nodeo.apps.atlases.propagation import propagate_files
        from monai_nodeo.registration.malloc import keep_freed_memory

        with keep_freed_memory():
            found = propagate_files(
                rows,
                registrations,
                settings,
                given["fusion"],
                given["best"],
                engine,
                given["batch"],
                given["device"],
                given["label"],
            )
        found.save(output, given["probabilities"])
    if not quiet:
        taken = [atlas["id"] for atlas in found.figures["atlases"] if atlas["chosen"]]
        which = f"the {len(taken)} most similar of {len(rows)} atlases: {', '.join(taken)}"
        click.echo(f"labels by {which if given['best'] else f'{len(taken)} of {len(rows)} atlases'}")
        click.echo(f"results are in {output}")
    if found.failures:
        sys.exit(_SOME_FAILED)
