# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The affine start of a registration, as a step of a pair's way: found from the images, or read from a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from monai_nodeo.data.affine import find_affine
from monai_nodeo.data.pair import source_name
from monai_nodeo.files import read_affine

__all__ = ["AlignPairD", "AlignPairDict", "AlignPaird"]

_LARGE_SCALE = 3.0

logger = logging.getLogger(__name__)


class AlignPaird(Transform):
    """Add "initial_affine" to a pair: (4, 4), float64, RAS mm, fixed physical point -> moving physical point.

    ``"moments"`` puts the centres of mass of what differs from the background on one another; ``"rigid"`` and
    ``"affine"`` go on from there with the mutual information of Mattes: a search over rotations up to 45 degrees at low
    resolution, then a gradient descent from coarse to fine. Only voxels that the masks count are compared. The same
    images give the same result.

    Args:
        initial_transform: ``"moments"``, ``"rigid"``, ``"affine"``, the path of a linear transform of ITK or ANTs
            (.mat, .tfm, .txt, .h5), or None to start from the headers: then nothing is added.

    Raises:
        ValueError: when it is neither a method nor a file.
        PairError: when the images cannot be compared, see `affine_registration.find_affine`.
    """

    def __init__(self, initial_transform: str | PathLike[str] | None = None) -> None:
        self.method = _METHODS.get(str(initial_transform))
        self.given = None
        if initial_transform is not None and self.method is None:
            self.given = _read_given(initial_transform)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Align one pair.

        Args:
            data: MetaTensors "fixed" and "moving", (1, *its spatial), perhaps "fixed_mask" and "moving_mask".

        Returns:
            A new dict.
        """
        pair = dict(data)
        if self.given is not None:
            pair["initial_affine"] = self.given.clone()
        elif self.method is not None:
            pair["initial_affine"] = self.method(
                pair["fixed"], pair["moving"], pair.get("fixed_mask"), pair.get("moving_mask")
            )
        if "initial_affine" in pair:
            _warn_of_scale(pair)
        return pair


AlignPairD = AlignPairDict = AlignPaird


_METHODS: dict[str, Callable[..., Tensor]] = {
    "moments": partial(find_affine, rigid=False),
    "rigid": partial(find_affine, affine=False),
    "affine": find_affine,
}


def _read_given(path: str | PathLike[str]) -> Tensor:
    try:
        return torch.from_numpy(np.array(read_affine(path)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"initial_transform {str(path)!r} is none of {', '.join(_METHODS)} and no linear transform: {error}"
        ) from error


def _warn_of_scale(pair: Mapping[str, Any]) -> None:
    scales = torch.linalg.svdvals(pair["initial_affine"][:3, :3])
    if float(scales.max()) > _LARGE_SCALE or float(scales.min()) < 1 / _LARGE_SCALE:
        logger.warning(
            "%s and %s: the affine start scales by %s; heads differ by less than %g, check the images and their "
            "voxel sizes.",
            *(source_name(key, pair[key]) for key in ("fixed", "moving")),
            " x ".join(f"{scale:.3g}" for scale in scales.tolist()),
            _LARGE_SCALE,
        )
