# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A registered pair as arrays on the fixed grid, as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from monai_nodeo.data.keys import PATH_KEYS, images_of
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.registration.result import Registration

__all__ = ["ShownPair", "shown"]


@dataclass(frozen=True, eq=False)
class ShownPair:
    """What a registration left, all of it on the fixed grid.

    Attributes:
        figures: content of metrics.json.
        history: term -> its value at every iteration, (iterations,).
        images: "fixed", "moving" (before registration, after the affine start) and "warped", (*spatial).
        labels: the same names -> label maps, (*spatial); empty without labels.
        masks: the same names, or some of them -> where the image counts and its view reaches, (*spatial), bool.
        ddf: displacement in voxels, (D, *spatial), tensor axis order, without the affine start.
        affine: voxel -> RAS mm of the fixed image, (4, 4).
        uncertainty: of the displacement, (*spatial), mm; None: not asked for.
        headers: "fixed" and "moving" -> facts of the image file.
    """

    figures: dict[str, Any]
    history: dict[str, NDArray]
    images: dict[str, NDArray]
    labels: dict[str, NDArray]
    masks: dict[str, NDArray]
    ddf: NDArray
    affine: NDArray
    uncertainty: NDArray | None
    headers: dict[str, dict[str, str]]


def shown(registration: Registration, figures: dict[str, Any]) -> ShownPair:
    """The arrays of a registration.

    Args:
        registration: with its pair.
        figures: content of its metrics.json.

    Raises:
        ValueError: without the pair, which the pictures show.
    """
    pair = registration.pair
    if pair is None:
        paths = [path for key in PATH_KEYS if key in figures for path in images_of(figures[key])]
        gone = ", ".join(path for path in paths if not Path(path).exists()) or "the images that were registered"
        raise ValueError(
            f"{figures['id']}: without {gone} there are no pictures; put the images back where they were, or correct "
            "their paths in metrics.json."
        )
    fixed, moving = pair.fixed, pair.moving

    def before(image: MetaTensor, mode: str) -> NDArray:
        return on_grid_of(fixed.image, image, registration.start, mode=mode)[0].as_tensor().numpy()

    def after(image: MetaTensor, mode: str) -> NDArray:
        return registration.warp(image, mode)[0].as_tensor().cpu().numpy()

    images, masks = registration.images
    labels = {}
    if fixed.label is not None and moving.label is not None:
        labels = {"fixed": fixed.label[0].as_tensor().numpy(), "moving": before(moving.label, "nearest")}
        labels["warped"] = after(moving.label, "nearest")
    return ShownPair(
        figures,
        {name: values.numpy() for name, values in registration.history.items()},
        images,
        labels,
        masks,
        registration.displacement.cpu().numpy(),
        registration.flow.grid.affine,
        None if registration.uncertainty is None else registration.uncertainty.cpu().numpy(),
        {"fixed": _header(fixed.image), "moving": _header(moving.image)},
    )


def _header(image: MetaTensor) -> dict[str, str]:
    affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE])
    return {
        "file": str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "in memory")),
        "voxels": " × ".join(str(int(n)) for n in image.meta[MetaKeys.SPATIAL_SHAPE]),
        "voxel size": " × ".join(f"{size:.4g}" for size in voxel_sizes(affine)) + " mm",
        "axes point to": " ".join(str(code) for code in aff2axcodes(affine)),
        "grey values": f"{float(image.min()):.5g} to {float(image.max()):.5g}",
    }
