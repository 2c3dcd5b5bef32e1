# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The affine start of a registration: found from the images, or read from a file.

The search, over all rotations where it has to be, is in `data.pose`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.data.pair import Pair, PairError, Scan, source_name
from monai_nodeo.data.placement import affine_3d, check_plane
from monai_nodeo.data.pose import Grid, Level, Poses, View, best_pose
from monai_nodeo.files import read_affine
from monai_nodeo.files.afni import check_straight_images

__all__ = ["METHODS", "Start", "find_start", "read_start"]

METHODS = ("auto", "none", "moments", "rigid", "affine")

_LARGE_SCALE = 3.0
_FOREGROUND = 0.05  # of the largest difference from the background
_MARGIN = 0.06  # of the foreground's box, on each side
_POINTS = {2: (24, 48, 96), 3: (12, 24, 48)}  # along an axis of the foreground, on average, coarse to fine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Start:
    """Where a registration starts from.

    Attributes:
        affine: (4, 4), float64, RAS mm, fixed physical point -> moving physical point; None: the headers.
        kind: "headers", "translation", "rigid", "affine", "moments" or "file".
        evidence: kind -> information in nats that a point of one image has about the other; "other" is the best of
            poses elsewhere. Empty where nothing was compared.
        defended: False where no start explains the pair better than a pose elsewhere does.
    """

    affine: Tensor | None
    kind: str
    evidence: dict[str, float]
    defended: bool = True

    def figures(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {"kind": self.kind, "defended": self.defended, "evidence": self.evidence}


@dataclass(frozen=True)
class _Side:
    """A view in mm, and the box around its foreground.

    Args:
        view: at most twice as fine as what is compared.
        axes: (D, D), orthonormal.
        centre: of the box, (D,).
        extent: of the box along the axes, (D,).
        mass: centre of the foreground, (D,).
    """

    view: View
    axes: Tensor
    centre: Tensor
    extent: Tensor
    mass: Tensor


def find_start(pair: Pair, initial_transform: str | PathLike[str] | None, rigid: bool = False) -> Start:
    """The affine that a registration starts from.

    ``"auto"`` lets the headers, a shift, a rigid and an affine map compete: the simplest one wins that explains the
    pair about as well as the best. If the headers do not explain it, all rotations are searched. What is compared is
    the information that each image has about the other within small windows, at a low resolution; see
    `monai_nodeo.data.pose`. No map mirrors, or scales an axis by 2 or more. ``"rigid"`` and ``"affine"`` are the same
    search for a map of that kind; ``"moments"`` puts the centres of mass of what differs from the background on one
    another. Of images with channels the first one is compared. Only voxels that the masks count are compared. The same
    images give the same result.

    Args:
        pair: as it was loaded.
        initial_transform: a method, the path of a linear transform of ITK or ANTs (.mat, .tfm, .txt, .h5), or
            ``"none"`` or None to start from the headers.
        rigid: leave affine maps out of ``"auto"``.

    Raises:
        ValueError: when it is neither a method nor a file.
        PairError: when nothing in an image differs from its background.
    """
    if initial_transform in (None, "none"):
        return Start(None, "headers", {})
    if str(initial_transform) not in METHODS:
        start = read_start(initial_transform)
        check_straight_images(initial_transform, *(affine_3d(scan.image).numpy() for scan in (pair.fixed, pair.moving)))
        _warn_of_scale(pair, start)
        return Start(start, "file", {})
    if pair.spatial_dims == 2:
        both = pair.fixed.image, pair.moving.image
        check_plane(*both, *map(affine_3d, both))
    frame = _frame(pair)
    fixed, moving = _side("fixed", pair.fixed, frame), _side("moving", pair.moving, frame)
    dims = pair.spatial_dims
    if initial_transform == "moments":
        return Start(_in_space(torch.eye(dims).double(), moving.mass - fixed.mass, frame), "moments", {})
    length = float((fixed.extent.prod() * moving.extent.prod()) ** (0.5 / dims))
    shift = ((fixed.centre - moving.centre) / length).float()
    headers = Poses(torch.eye(dims)[None], shift[None])
    kinds: tuple[str, ...] = (str(initial_transform),)
    if initial_transform == "auto":
        kinds = ("headers", "translation", "rigid") if rigid else ("headers", "translation", "rigid", "affine")
    views = [_pyramid(side, length) for side in (fixed, moving)]
    found = best_pose([Level(*both) for both in zip(*views, strict=True)], headers, kinds)
    if not found.evidence["headers"]:
        logger.warning("%s: their headers put them nowhere near one another; a start is searched for.", _names(pair))
    if not found.defended:
        _warn_of_doubt(pair, found.kind)
    if found.kind == "headers":
        return Start(None, found.kind, found.evidence, found.defended)
    matrix = found.pose.matrix[0].double()
    offset = moving.centre + length * found.pose.shift[0].double() - matrix @ fixed.centre
    return Start(_in_space(matrix, offset, frame), found.kind, found.evidence, found.defended)


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


def _frame(pair: Pair) -> Tensor:
    """(3, D) orthonormal axes in which poses are found: those of the world, for a slice two that span its plane."""
    if pair.spatial_dims == 3:
        return torch.eye(3, dtype=torch.float64)
    return torch.linalg.qr(affine_3d(pair.fixed.image)[:3, :2])[0]


def _in_space(matrix: Tensor, offset: Tensor, frame: Tensor) -> Tensor:
    """(4, 4) of a map within the frame; across it, nothing moves."""
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3, :3] += frame @ (matrix - torch.eye(len(matrix)).double()) @ frame.T
    whole[:3, 3] = frame @ offset
    return whole


def _side(key: str, scan: Scan, frame: Tensor) -> _Side:
    image, dims = scan.image, frame.shape[1]
    affine = frame.T @ affine_3d(image)[:3, [*range(dims), 3]]
    sides = torch.linalg.vector_norm(affine[:, :dims], dim=0)
    shape = torch.tensor(image.shape[1:])
    coarse = float((sides * shape).prod() ** (1 / dims)) / (2 * _POINTS[dims][-1])
    values = image.as_tensor()[0].cpu().float()
    weight = torch.ones(()).expand(values.shape) if scan.mask is None else scan.mask.as_tensor().cpu()[0].float()
    view = View(Grid(affine, tuple(values.shape)), values, weight).pooled(coarse)
    inside = view.weight > 0.5
    border = inside.clone()
    border[(slice(1, -1),) * dims] = False
    seen = view.values[border] if bool(border.any()) else view.values
    background = seen.median()
    difference = torch.where(inside, (view.values - background).abs(), 0)
    foreground = difference > _FOREGROUND * difference.max()
    if not bool(foreground.any()):
        raise PairError(f"{source_name(key, image)}: nothing differs from the background; check image and mask.")
    low, high = (float(x) for x in np.percentile(view.values[foreground].numpy(), (0.5, 99.5)))
    view = View(view.grid, view.values.clamp(min(low, float(background)), max(high, float(background))), view.weight)
    counts = [foreground.sum([a for a in range(dims) if a != axis]).double() for axis in range(dims)]
    bounds = torch.stack([n.nonzero()[[0, -1], 0] for n in counts]).double()
    mean = torch.stack([n @ torch.arange(len(n)).double() / n.sum() for n in counts])
    margin = _MARGIN * (bounds[:, 1] - bounds[:, 0] + 1)
    first = (bounds[:, 0] - margin).clamp_min(-0.5)
    last = torch.minimum(bounds[:, 1] + margin, torch.tensor(foreground.shape) - 0.5)
    steps = view.grid.affine[:, :-1]
    u, _, v = torch.linalg.svd(steps / torch.linalg.vector_norm(steps, dim=0))
    centre, mass = (view.grid.place(x) for x in ((first + last) / 2, mean))
    return _Side(view, u @ v, centre, (last - first) * torch.linalg.vector_norm(steps, dim=0), mass)


def _pyramid(side: _Side, length: float) -> list[View]:
    """Views of the box, coarse to fine, in units of ``length`` around its centre."""
    affine = side.view.grid.affine.clone()
    affine[:, -1] -= side.centre
    view = View(Grid(affine / length, side.view.grid.shape), side.view.values, side.view.weight)
    views = []
    for points in reversed(_POINTS[len(affine)]):
        view = view.on(Grid.around(side.axes / points, side.extent / length * points))
        views.append(view)
    return views[::-1]


def _names(pair: Pair) -> str:
    return f"{source_name('fixed', pair.fixed.image)} and {source_name('moving', pair.moving.image)}"


def _warn_of_doubt(pair: Pair, kind: str) -> None:
    start = "their headers are taken" if kind == "headers" else f"a start that is {kind} is taken"
    logger.warning(
        "%s: no alignment explains these images better than others do, so %s unproven; check the result, or "
        "give an initial_transform in a file.",
        _names(pair),
        start,
    )


def _warn_of_scale(pair: Pair, start: Tensor) -> None:
    scales = torch.linalg.svdvals(start[:3, :3])
    if float(scales.max()) > _LARGE_SCALE or float(scales.min()) < 1 / _LARGE_SCALE:
        logger.warning(
            "%s: the affine start scales by %s; heads differ by less than %g, check the images and their voxel sizes.",
            _names(pair),
            " x ".join(f"{scale:.3g}" for scale in scales.tolist()),
            _LARGE_SCALE,
        )
