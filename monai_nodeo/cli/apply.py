# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo apply``: transforms applied to images, label maps, series and points."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command()
@click.option("-i", "--image", required=True, help="What is moved: an image, a series, a label map, or points (.csv).")
@click.option("-r", "--reference", help="Image whose grid the result gets. Not for points.")
@click.option(
    "-t", "--transform", "transforms", required=True, multiple=True, help="May be repeated; [FILE,1] inverts."
)
@click.option(
    "-n",
    "--interpolation",
    type=click.Choice(["linear", "nearest", "label"]),
    default="linear",
    show_default=True,
    help="label: the label with the largest linear weight.",
)
@click.option("-o", "--output", required=True, help="File of the result: .nii.gz, or .csv for points.")
@click.option("--outside", type=float, default=0.0, show_default=True, help="Value where the image is not known.")
def command(
    image: str, reference: str | None, transforms: tuple[str, ...], interpolation: str, output: str, outside: float
) -> None:
    """Apply transforms, as antsApplyTransforms does.

    With several, the last one is applied to the image first. The result has the reference's grid and the image's type
    of values.

    Points are a table with x, y, z in LPS mm, and go the opposite way: a transform that brings the moving image on to
    the fixed grid takes points of the fixed image to the moving one. For the other direction give the inverse.
    """
    from monai_nodeo.files import check_folder, check_image_target
    from monai_nodeo.files.resampling import apply_to_image, apply_to_points, read_chain

    if image.lower().endswith(".csv"):
        check_folder(output)
        apply_to_points(image, read_chain(transforms), output)
        return
    if reference is None:
        raise click.UsageError("an image needs a reference whose grid the result gets; give it with -r.")
    check_image_target(output)
    apply_to_image(image, reference, read_chain(transforms), output, interpolation, outside)
