# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A finished pair, read back from its files."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys
from nibabel.affines import voxel_sizes
from nibabel.loadsave import load
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.data.load import LoadPaird
from monai_nodeo.data.pair import IMAGE_KEYS, LABEL_KEYS, MASK_KEYS
from monai_nodeo.data.placement import affine_3d, on_grid_of
from monai_nodeo.files import read_displacement

__all__ = ["FIGURES", "FinishedPair", "read_figures", "read_history", "read_pair"]

FIGURES = "metrics.json"


@dataclass(frozen=True, eq=False)
class FinishedPair:
    """What a registration left, all of it on the fixed grid.

    Attributes:
        figures: content of metrics.json.
        history: term -> its value at every iteration, (iterations,).
        images: "fixed", "moving" (before registration, after the affine start) and "warped", (*spatial).
        labels: the same names -> label maps, (*spatial); empty without labels.
        masks: the same names, or some of them -> where the image counts, (*spatial), bool; empty without masks.
        ddf: displacement in voxels, (D, *spatial), tensor axis order, without the affine start.
        affine: voxel -> RAS mm of the fixed image, (4, 4).
        headers: "fixed" and "moving" -> facts of the image file.
    """

    figures: dict[str, Any]
    history: dict[str, NDArray]
    images: dict[str, NDArray]
    labels: dict[str, NDArray]
    masks: dict[str, NDArray]
    ddf: NDArray
    affine: NDArray
    headers: dict[str, dict[str, str]]


def read_pair(folder: PathLike) -> FinishedPair:
    """Read a pair's folder, and the images and labels that its figures name.

    Raises:
        ValueError: when the folder holds no finished pair, or a file that was registered is not there any more.
    """
    path = Path(str(folder))
    figures = read_figures(path)
    row = {key: figures[key] for key in (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS) if key in figures}
    for key, name in row.items():
        if not Path(name).exists():
            raise ValueError(
                f"{path}: the {key} file {name} that was registered is not there any more, and the pictures show it; "
                f"put it back, or correct its path in {path / FIGURES}."
            )
    whole_way, _ = read_displacement(path / "displacement.nii.gz")
    loaded = LoadPaird(len(whole_way), min_size=2)(row)
    start = torch.tensor(figures["initial_affine"], dtype=torch.float64) if "initial_affine" in figures else None
    ddf = whole_way if start is None else _without(start, whole_way, affine_3d(loaded["fixed"]))

    def on_fixed_grid(key: str, mode: str, ddf: Tensor | None = None) -> NDArray:
        return on_grid_of(loaded["fixed"], loaded[key], start, ddf, mode)[0].numpy()

    shape = ddf.shape[1:]
    images = {"fixed": loaded["fixed"][0].numpy(), "moving": on_fixed_grid("moving", "bilinear")}
    images["warped"] = _voxels(path / "warped.nii.gz", shape)
    labels = {}
    if "moving_label" in row:
        labels = {"fixed": loaded["fixed_label"][0].numpy(), "moving": on_fixed_grid("moving_label", "nearest")}
        labels["warped"] = _voxels(path / "warped_label.nii.gz", shape)
    masks = {}
    if "fixed_mask" in row:
        masks["fixed"] = loaded["fixed_mask"][0].numpy() > 0
    if "moving_mask" in row:
        masks["moving"] = on_fixed_grid("moving_mask", "nearest") > 0
        masks["warped"] = on_fixed_grid("moving_mask", "nearest", torch.from_numpy(ddf)) > 0
    affine = loaded["fixed"].affine.numpy()
    headers = {key: _header(loaded[key]) for key in IMAGE_KEYS}
    return FinishedPair(figures, read_history(path), images, labels, masks, ddf, affine, headers)


def read_figures(folder: Path) -> dict[str, Any]:
    """metrics.json of a pair's folder.

    Raises:
        ValueError: when there is none, or a damaged one.
    """
    path = folder / FIGURES
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {FIGURES}, so no pair was finished there; register it first.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); register the pair again.") from error
    return figures


def read_history(folder: Path) -> dict[str, NDArray]:
    """Columns of history.csv without the number of the iteration."""
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "iteration"] if rows else []
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def _without(start: Tensor, whole_way: NDArray, affine: Tensor) -> NDArray:
    """What is left of a displacement (D, *spatial) in voxels when the affine start that it ends with is undone."""
    dims = len(whole_way)
    back = torch.linalg.inv(torch.linalg.inv(affine) @ start @ affine).numpy().astype(whole_way.dtype)
    places = np.indices(whole_way.shape[1:], dtype=whole_way.dtype)
    arrived = np.einsum("ij,j...->i...", back[:dims, :dims], places + whole_way)
    return arrived + back[:dims, 3].reshape(-1, *[1] * dims) - places


def _voxels(path: Path, shape: tuple[int, ...]) -> NDArray:
    image = load(path)
    assert isinstance(image, SpatialImage)
    return np.asarray(image.dataobj, dtype=np.float32).reshape(shape)


def _header(image: MetaTensor) -> dict[str, str]:
    affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE])
    return {
        "file": str(image.meta[ImageMetaKey.FILENAME_OR_OBJ]),
        "voxels": " × ".join(str(int(n)) for n in image.meta[MetaKeys.SPATIAL_SHAPE]),
        "voxel size": " × ".join(f"{size:.4g}" for size in voxel_sizes(affine)) + " mm",
        "axes point to": " ".join(str(code) for code in aff2axcodes(affine)),
        "grey values": f"{float(image.min()):.5g} to {float(image.max()):.5g}",
    }
