# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo apply``: transforms applied to images, label maps, series, points, streamlines and meshes."""

from __future__ import annotations

import click

from monai_nodeo.apps.cli._options import file_of, is_registration

__all__ = ["command"]


@click.command()
@click.option("-i", "--image", required=True, help="What is moved: an image, a series, a label map, or points.")
@click.option("-r", "--reference", help="Image whose grid the result gets. Not for points.")
@click.option(
    "-t",
    "--transform",
    "transforms",
    required=True,
    multiple=True,
    help="A file, or the folder of a registration, whose flow is used. May be repeated; [FILE,1] inverts an affine.",
)
@click.option("--inverse", is_flag=True, help="The way back through the first transform, a registration.")
@click.option("--t0", type=click.FloatRange(0, 1), default=0.0, help="Begin at this time of the flow.")
@click.option("--t1", type=click.FloatRange(0, 1), default=1.0, help="End at this time of the flow.")
@click.option(
    "-n",
    "--interpolation",
    type=click.Choice(["linear", "nearest", "label"]),
    default="linear",
    show_default=True,
    help="label: the label with the largest linear weight.",
)
@click.option(
    "-o", "--output", required=True, help="The result: .nii.gz, .zarr, or FOLDER/ for DICOM; points keep their format."
)
@click.option(
    "--outside", type=float, help="Value where the image is not known; by default its background, 0 for labels."
)
@click.option(
    "--reorient",
    type=click.Choice(["lps", "ras"]),
    help="Turn vectors (x, y, z) and tensors (xx, xy, yy, xz, yz, zz) with the space; the frame of their components.",
)
def command(
    image: str,
    reference: str | None,
    transforms: tuple[str, ...],
    inverse: bool,
    t0: float,
    t1: float,
    interpolation: str,
    output: str,
    outside: float | None,
    reorient: str | None,
) -> None:
    """Apply transforms, as antsApplyTransforms does.

    With several, the last one is applied to the image first. The result has the reference's grid and the image's type
    of values. Of two DICOM series, -o FOLDER/ makes a third one, in the study of the reference.

    Points are a table with x, y, z in LPS mm (.csv), markups of Slicer (.fcsv, .mrk.json), points of elastix (.pts,
    .txt), streamlines (.trk, .tck), surfaces (.gii) and meshes (.vtk, .vtp, .ply, .stl). They go the opposite way: a
    transform that brings the moving image on to the fixed grid takes points of the fixed image to the moving one. For
    the other direction give the inverse.

    The flow of a registration goes from time 0, the fixed image, to time 1, the moving image, and with --inverse back.
    """
    from monai_nodeo.files import (
        ImageGrid,
        Transform,
        check_points_target,
        check_warped_target,
        holds_points,
        read_points,
        write_points,
    )
    from monai_nodeo.files.resampling import apply_to_image, apply_to_points, read_chain

    by_flow = is_registration(transforms[0])
    if not by_flow and (inverse or (t0, t1) != (0, 1)):
        raise click.UsageError(
            "--inverse, --t0 and --t1 need the folder of a registration as the first transform; of a file, "
            "monai-nodeo invert writes the inverse."
        )
    points = holds_points(image)
    if points and reference is not None:
        raise click.UsageError("points have no grid, so that no reference is needed; leave out -r.")
    if not points and reference is None:
        raise click.UsageError("an image needs a reference whose grid the result gets; give it with -r.")
    if points:
        check_points_target(output, image)
    else:
        check_warped_target(output, image, str(reference))
    others = transforms[1:] if by_flow else transforms
    images = None if points else (str(reference), image)
    chain = read_chain([file_of(name) for name in others], images) if others else None
    if points and by_flow:
        table = read_points(image)
        from monai_nodeo.registration.folder_transform import moved_points

        moved = moved_points(transforms[0], table, inverse, t0, t1)
        write_points(output, moved if chain is None else moved.moved_to(chain.map_points(moved.ras)))
    elif points:
        assert chain is not None
        apply_to_points(image, chain, output)
    else:
        steps = () if chain is None else chain.steps
        if by_flow:
            grid = ImageGrid.from_file(str(reference))
            from monai_nodeo.registration.folder_transform import transform_of_folder

            steps = (*transform_of_folder(transforms[0], inverse, grid, t0, t1).steps, *steps)
        apply_to_image(image, str(reference), Transform(steps), output, interpolation, outside, reorient)
    click.echo(output)
