# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo convert``: between the formats of transforms."""

from __future__ import annotations

import click

from monai_nodeo.apps.cli._options import file_of

__all__ = ["command"]

_TOOL = click.Choice(["afni", "fsl", "greedy"])


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("-r", "--reference", help="Image whose grid a field gets; by default that of the first field in FROM.")
@click.option("-m", "--moving", help="The moving image, for AFNI, FSL and .dcm, where both images are DICOM series.")
@click.option("--from", "source_tool", type=_TOOL, help="FROM is of this tool.")
@click.option("--to", "target_tool", type=_TOOL, help="TO is for this tool.")
def command(
    source: str,
    target: str,
    reference: str | None,
    moving: str | None,
    source_tool: str | None,
    target_tool: str | None,
) -> None:
    """Convert a transform; the names of the files say their formats.

    \b
    *.h5                   ITK composite, all steps as they are
    *.nii.gz               ITK displacement field, all steps as one
    disp_FFFF_MMMM.nii.gz  Learn2Reg: the same in voxels of the fixed grid
    *.tfm, *.txt, *.mat    ITK affine
    *.x5                   X5 of BIDS: an affine, or all steps as one field
    *.aff12.1D             AFNI: an affine
    *.zarr                 OME-NGFF 0.6 (RFC-5): a field, affines as they are
    *.dcm                  DICOM: Spatial Registration of an affine, else Deformable Spatial Registration

    Where they do not, --from and --to do: afni is its warp (.nii.gz), fsl FLIRT's matrix (.mat) or FNIRT's field
    (.nii.gz), greedy its matrix. An affine of AFNI between oblique images needs both of them.
    """  # noqa: D301
    from monai_nodeo.files import ImageGrid, check_transform_target, read_transform, write_transform

    images = (reference, moving) if reference and moving else None
    check_transform_target(target, images, target_tool)
    grid = ImageGrid.from_file(reference) if reference else None
    transform = read_transform(file_of(source), source_tool, images)
    write_transform(target, transform, grid, images, target_tool)
    click.echo(target)
