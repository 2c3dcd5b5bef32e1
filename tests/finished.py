# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Result folders of a displacement that is given instead of found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Compose, ScaleIntensityd
from torch import Tensor

from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.load import LoadPaird
from monai_nodeo.data.match import MatchGridd
from monai_nodeo.losses import LocalNCCLoss
from monai_nodeo.registration.inferer import Registration
from monai_nodeo.registration.outputs import SavePair
from monai_nodeo.registration.transforms import WarpWithDDFd

FALLING = torch.linspace(0, 1, 60).neg().mul(12).exp()


def save_result(
    output_dir: Path,
    images: Mapping[str, np.ndarray],
    ddf: Tensor,
    affine: np.ndarray,
    id: str = "pair",
    history: Mapping[str, Tensor] | None = None,
    start: np.ndarray | None = None,
) -> Path:
    """Write what the bundle writes for a pair.

    Args:
        output_dir: gets the folder of the pair; the images go to "<id>_images" in it.
        images: "fixed", "moving" and perhaps "fixed_label", "moving_label", (*spatial).
        ddf: (D, *spatial).
        affine: voxel -> RAS mm.
        id: of the pair.
        start: affine start, RAS mm, fixed point -> moving point.
        history: loss terms; by default a loss that has levelled off.

    Returns:
        The folder of the pair.
    """
    dims = len(ddf)
    files = output_dir / f"{id}_images"
    files.mkdir(parents=True)
    row = {key: str(files / f"{key}.nii.gz") for key in images}
    for key, values in images.items():
        stored = values.astype(np.float32).reshape((*values.shape, 1)[: 3 if dims == 2 else dims])
        nib.save(nib.Nifti1Image(stored, affine), row[key])
    inputs = ["fixed_input", "moving_input"]
    steps = [LoadPaird(dims), MatchGridd(), ScaleIntensityd(inputs)]
    given = {} if start is None else {"initial_affine": torch.from_numpy(start)}
    item = {**Compose(steps)({**row, **given}), "id": id}
    keys = ["moving", "moving_label"]
    warp = WarpWithDDFd(
        keys,
        ddf_key="pred",
        mode=["bilinear", "nearest"],
        output_keys=["warped", "warped_label"],
        allow_missing_keys=True,
    )
    output = warp({**item, "pred": ddf})
    terms = dict(history or {"loss": FALLING, "similarity": FALLING})
    found = Registration(ddf, terms, len(terms["loss"]), 1.5)
    loss = SimpleNamespace(similarity=LocalNCCLoss(dims, 9))
    inferer = SimpleNamespace(registrations=[found], loss_function=loss, seed=0)
    saver = SavePair(output_dir, inferer, PairDataset([{**row, "id": id}], dict))
    saver(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))
    return output_dir / id
