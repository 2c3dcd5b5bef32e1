# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Register the built-in example pair in 2D and in 3D: ``python -m monai_nodeo.apps.demo``.

The true deformation of the example is known, so the table tells how many millimetres the registration is from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.examples import ExamplePair, example_pair, write_pair
from monai_nodeo.extras import MissingExtraError
from monai_nodeo.files import ImageGrid, write_displacement, write_image
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import RegisterPair, WarpWithDDF
from monai_nodeo.registration.malloc import keep_freed_memory

__all__ = ["Figures", "assess", "main", "register_example"]

_SPACING = {2: 1.0, 3: 2.5}  # mm
_QUICK_SPACING = {2: 2.0, 3: 4.0}

_HEADER = """\
                             Dice           error in mm      folding   time
                         grey    white     mean     95 %        %        s"""


class Figures(NamedTuple):
    """How well a displacement explains the example pair.

    Attributes:
        grey: Dice of grey matter.
        white: Dice of white matter.
        error_mean: distance from the true displacement in grey and white matter, mean, mm.
        error_95: its 95 % quantile, mm.
        folding: share of the voxels where the field folds, in per cent.
    """

    grey: float
    white: float
    error_mean: float
    error_95: float
    folding: float


def assess(pair: ExamplePair, ddf: Tensor) -> Figures:
    """Compare a displacement with the truth.

    Args:
        pair: the example.
        ddf: displacement in voxels, (D, *spatial), tensor axis order.
    """
    label = _warped(pair.moving_label, ddf, "nearest")
    dice = label_metrics(label, pair.fixed_label, pair.spacing)["dice"]
    difference = (ddf.numpy() - pair.ddf) * np.reshape(pair.spacing, (-1, *[1] * pair.fixed.ndim))
    error = np.linalg.norm(difference, axis=0)[pair.fixed_label > 0]
    folds = jacobian_determinant(ddf[None]) <= 0
    return Figures(dice[1], dice[2], error.mean(), np.quantile(error, 0.95), 100 * folds.float().mean().item())


def register_example(spatial_dims: int, spacing: float, folder: Path) -> list[str]:
    """Register the example pair and save images, displacement and pictures.

    Args:
        spatial_dims: 2 or 3.
        spacing: voxel size in mm.
        folder: where the files go; made if it does not exist.

    Returns:
        The rows of the table: before, after, and with the true deformation.

    Raises:
        MissingExtraError: without nilearn or matplotlib.
    """
    name = f"{spatial_dims}D"
    print(f"{name}: making the example", end="", flush=True)
    pair = example_pair(spatial_dims, spacing)
    from monai_nodeo.report.plots import plot_history, plot_registration  # may lack a package, of an extra

    write_pair(pair, folder)
    print(f", {' x '.join(str(n) for n in pair.fixed.shape)} at {spacing:g} mm; registering ...", flush=True)

    fixed, moving, truth = (torch.from_numpy(x) for x in (pair.fixed, pair.moving, pair.ddf))
    with keep_freed_memory():
        result = RegisterPair()(*(MetaTensor(x[None], affine=torch.tensor(pair.affine)) for x in (fixed, moving)))
    print(f"{name}: {result.iterations} iterations in {result.seconds:.0f} s", flush=True)

    warped = _warped(pair.moving, result.ddf)
    grid = ImageGrid(pair.affine, (*pair.fixed.shape, *[1] * (3 - spatial_dims)))
    write_image(folder / "warped.nii.gz", warped, grid)
    write_displacement(folder / "displacement.nii.gz", result.ddf, grid)
    plot_registration(fixed, moving, warped, result.ddf, pair.affine).savefig(folder / "registration.png")
    plot_history(result.history).savefig(folder / "history.png")
    return [
        _row(f"{name}  before", assess(pair, torch.zeros_like(truth))),
        _row("    after", assess(pair, result.ddf), result.seconds),
        _row("    true deformation", assess(pair, truth)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo.

    Args:
        arguments: command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m monai_nodeo.apps.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="use coarser images: seconds, and less accurate")
    options = parser.parse_args(arguments)

    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot make the folder {options.output} ({error.strerror}); name another one with --output.")

    spacing = _QUICK_SPACING if options.quick else _SPACING
    try:
        rows = [row for dims in (2, 3) for row in register_example(dims, spacing[dims], options.output / f"{dims}d")]
    except MissingExtraError as error:
        parser.exit(1, f"\n{error}\n")
    print("", _HEADER, *rows, sep="\n")
    print(f"""
Dice: overlap of the labels, 1 is perfect. With the true deformation it stays below 1, since voxels are finite.
Error: distance from the true displacement within the brain. Folding: voxels where the field is not invertible.

Picture of the slice   {options.output / "2d" / "registration.png"}
Picture of the volume  {options.output / "3d" / "registration.png"}
Images, displacement fields (for ITK, ANTs and Slicer) and loss curves are beside them.""")


def _row(name: str, figures: Figures, seconds: float | None = None) -> str:
    time = "" if seconds is None else f"{seconds:8.0f}"
    return (
        f"{name:<21}{figures.grey:8.3f} {figures.white:8.3f} {figures.error_mean:8.2f} {figures.error_95:8.2f}"
        f" {figures.folding:9.3f} {time}"
    ).rstrip()


def _warped(image: np.ndarray, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """An image of the moving grid on the fixed one, (*spatial)."""
    return WarpWithDDF(mode)(torch.from_numpy(image)[None], ddf)[0]


if __name__ == "__main__":
    main()
