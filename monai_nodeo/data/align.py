# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The affine start of a registration: found from the images, or read from a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.data.affine import find_affine
from monai_nodeo.data.pair import Pair, source_name
from monai_nodeo.files import read_affine

__all__ = ["METHODS", "find_start", "read_start"]

_LARGE_SCALE = 3.0

logger = logging.getLogger(__name__)

METHODS: dict[str, Callable[[Pair], Tensor]] = {
    "moments": partial(find_affine, rigid=False),
    "rigid": partial(find_affine, affine=False),
    "affine": find_affine,
}


def find_start(pair: Pair, initial_transform: str | PathLike[str] | None) -> Tensor | None:
    """The affine that a registration starts from.

    ``"moments"`` puts the centres of mass of what differs from the background on one another; ``"rigid"`` and
    ``"affine"`` go on from there with the mutual information of Mattes: a search over rotations up to 45 degrees at low
    resolution, then a gradient descent from coarse to fine. Only voxels that the masks count are compared. The same
    images give the same result.

    Args:
        pair: as it was loaded.
        initial_transform: ``"moments"``, ``"rigid"``, ``"affine"``, the path of a linear transform of ITK or ANTs
            (.mat, .tfm, .txt, .h5), or None to start from the headers.

    Returns:
        (4, 4), float64, RAS mm, fixed physical point -> moving physical point; None to start from the headers.

    Raises:
        ValueError: when it is neither a method nor a file.
        PairError: when the images cannot be compared, see `find_affine`.
    """
    if initial_transform is None:
        return None
    method = METHODS.get(str(initial_transform))
    start = method(pair) if method else read_start(initial_transform)
    _warn_of_scale(pair, start)
    return start


def read_start(path: str | PathLike[str]) -> Tensor:
    """A linear transform of a file, see `find_start`.

    Raises:
        ValueError: names the file, and the methods, of which it might be a misspelt one.
    """
    try:
        return torch.from_numpy(np.array(read_affine(path)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"initial_transform {str(path)!r} is none of {', '.join(METHODS)} and no linear transform: {error}"
        ) from error


def _warn_of_scale(pair: Pair, start: Tensor) -> None:
    scales = torch.linalg.svdvals(start[:3, :3])
    if float(scales.max()) > _LARGE_SCALE or float(scales.min()) < 1 / _LARGE_SCALE:
        logger.warning(
            "%s and %s: the affine start scales by %s; heads differ by less than %g, check the images and their "
            "voxel sizes.",
            *(source_name(key, scan.image) for key, scan in (("fixed", pair.fixed), ("moving", pair.moving))),
            " x ".join(f"{scale:.3g}" for scale in scales.tolist()),
            _LARGE_SCALE,
        )
