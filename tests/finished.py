# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What result folders hold, and folders of a flow that is given instead of found."""

import csv
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_nodeo.data import load_pair
from monai_nodeo.data.pair import stored_grid
from monai_nodeo.flows import Flow, RungeKutta, VelocityField
from monai_nodeo.metrics import certify_flow
from monai_nodeo.registration import Registration, Settings

FALLING = torch.linspace(0, 1, 60).neg().mul(12).exp()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_images(folder: Path, images: Mapping[str, np.ndarray], affine: np.ndarray) -> dict[str, str]:
    """Write "fixed", "moving" and what else there is, (*spatial), as a row of a data list; a 2D image is a slice."""
    folder.mkdir(parents=True)
    for key, values in images.items():
        stored = values.astype(np.float32).reshape((*values.shape, 1)[:3])
        nib.save(nib.Nifti1Image(stored, affine), folder / f"{key}.nii.gz")
    return {key: str(folder / f"{key}.nii.gz") for key in images}


def save_result(
    output_dir: Path,
    images: Mapping[str, np.ndarray],
    velocity: Tensor,
    affine: np.ndarray,
    id: str = "pair",
    history: Mapping[str, Tensor] | None = None,
    start: np.ndarray | None = None,
) -> Path:
    """Write the folder of a pair, beside one of its images, and return it.

    The velocity (D, *spatial), in voxels, is the same at all times; of a small one the displacement is nearly the same.
    The start takes fixed points to moving ones, in RAS mm. The history is by default one that has levelled off.
    """
    pair = load_pair({**save_images(output_dir / f"{id}_images", images, affine), "id": id}, min_size=1)
    grid = stored_grid(pair.fixed.image)
    to_phi = torch.tensor([2 / (n - 1) for n in velocity.shape[1:]]).view(-1, *[1] * len(velocity))
    flow = Flow(VelocityField.of((velocity * to_phi)[None]), RungeKutta(), grid, grid)
    ddf = flow.displacement()
    terms = dict(history or {"loss": FALLING, "similarity": FALLING})
    registration = Registration(
        flow=flow,
        start=None if start is None else torch.from_numpy(start),
        displacement=ddf,
        history={"level": torch.zeros(len(terms["loss"])), **terms},
        settings=Settings.preset(spatial_dims=len(velocity)),
        certificate=certify_flow(flow, ddf),
        similarity=(0.8, 0.4),
        seconds=1.5,
        pair=pair,
    )
    registration.save(output_dir / id)
    return output_dir / id
