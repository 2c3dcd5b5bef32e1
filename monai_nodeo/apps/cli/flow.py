# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo flow``: a registration on its way, as images, points and a film."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


class _Times(click.ParamType):
    """Numbers from 0 to 1 with commas between them."""

    name = "t,t,..."

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            times = [float(part) for part in value.split(",")]
        except ValueError:
            times = []
        if not times or not all(0 <= t <= 1 for t in times):
            self.fail(f"{value!r} is no list of times from 0 to 1, such as 0,0.5,1.", param, ctx)
        return times


@click.command()
@click.argument("registration", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--times", type=_Times(), default="0,0.25,0.5,0.75,1", show_default=True, help="From 0 to 1.")
@click.option("--points", help="Points of the fixed image that are taken along; a file as for apply.")
@click.option("--animate", metavar="FILE", help="Film of the middle plane: .gif, or a folder for PNG files.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the results; by default OUT/flow.")
def command(
    registration: Path, times: list[float], points: str | None, animate: str | None, output: Path | None
) -> None:
    """Show how the moving image comes on to the fixed one in the registration of OUT.

    At time 0 it lies on the fixed image, at time 1 where it was before the deformation. Writes an image for each time,
    labels and points too if there are some; all lie on the fixed grid.
    """
    import torch

    from monai_nodeo.files import check_output_dir, read_points, warn_off_slice, write_image, write_labels, write_points
    from monai_nodeo.registration import Registration

    if animate and Path(animate).suffix not in ("", ".gif"):
        raise click.BadParameter(f"{animate!r} is neither a .gif nor a folder.", param_hint="--animate")
    if animate:
        from monai_nodeo.report.film import write_film
    table = read_points(points) if points else None
    found = Registration.load(registration)
    if found.pair is None:
        raise ValueError(f"{registration}: the images that were registered are not where they were.")
    folder = check_output_dir(output or registration / "flow")
    grid, moving = found.flow.grid, found.pair.moving
    if table is not None:
        warn_off_slice(table.path, table.ras, grid.affine, grid.shape)
    dtype = moving.image.meta.get("original_dtype", "float32")
    for time in times:
        name = f"time_{time:.3f}"
        write_image(folder / f"{name}.nii.gz", found.at(time)[0].as_tensor(), grid, dtype)
        if moving.label is not None:
            label = found.at(time, moving.label, mode="nearest")
            write_labels(folder / f"{name}_label.nii.gz", label[0].as_tensor(), grid)
        if points and table is not None:
            there = found.flow(torch.from_numpy(table.ras), 0.0, time)
            write_points(folder / f"{name}_{Path(points).name}", table.moved_to(there.numpy()))
        click.echo(folder / f"{name}.nii.gz")
    if animate:
        click.echo(write_film(found, Path(animate)))
