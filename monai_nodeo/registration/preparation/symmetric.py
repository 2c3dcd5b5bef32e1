# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A pair without preference for either image: both are sampled in the middle of their rigid start, on a mean grid.

There one velocity is fitted to both ways at once, see :py:class:`monai_nodeo.flows.VelocityBatch`. To exchange images
exchanges the halves of the start, leaves the grid and negates the velocity, so that the flow is the inverse one. The
blur of the one interpolation is the same for both images (Yushkevich et al., NeuroImage 2010; Reuter and Fischl,
NeuroImage 2011).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from monai.data import MetaTensor
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation
from torch import Tensor

from monai_nodeo.data.masks import with_mask_of_air
from monai_nodeo.data.pair import Pair, PairError, Scan
from monai_nodeo.data.placement import affine_3d, on_grid_of
from monai_nodeo.data.start import Start, find_start

__all__ = ["exchanged", "half_of", "mean_grid", "on_mean_grid", "symmetric_start", "with_masks_of_air"]

_RIGID = 1e-3  # largest entry by which a product of axes may differ from that of right-angled ones


def exchanged(pair: Pair) -> Pair:
    """The pair with its images exchanged."""
    return replace(pair, fixed=pair.moving, moving=pair.fixed)


def with_masks_of_air(pair: Pair) -> Pair:
    """What `with_mask_of_air` does to the fixed image, of both."""
    return exchanged(with_mask_of_air(exchanged(with_mask_of_air(pair))))


def symmetric_start(pair: Pair, initial_transform: str | None) -> Start:
    """A rigid start that is the inverse one when the images are exchanged.

    It is looked for both ways; the way that explains the images better is taken. A size that differs is left to the
    flow. A transform in a file is taken as it is.

    Args:
        pair: as it was loaded.
        initial_transform: see :py:func:`monai_nodeo.data.find_start`, ``"auto"`` without affine starts.

    Raises:
        PairError: for a start that is not rigid, or see there.
    """
    there = find_start(pair, initial_transform, rigid=True)
    if there.kind != "file":
        back = find_start(exchanged(pair), initial_transform, rigid=True)
        if back.evidence.get(back.kind, 0.0) > there.evidence.get(there.kind, 0.0):
            there = replace(back, affine=None if back.affine is None else torch.linalg.inv(back.affine))
    if there.affine is None:
        return there
    half = half_of(there.affine)
    return replace(there, affine=half @ half)


def half_of(start: Tensor | None) -> Tensor:
    """The rigid map (4, 4) that is a rigid start when it is done twice.

    Raises:
        PairError: when the start is not rigid.
    """
    if start is None:
        return torch.eye(4, dtype=torch.float64)
    turn, shift = start[:3, :3].double().cpu(), start[:3, 3].double().cpu()
    away = float((turn.T @ turn - torch.eye(3, dtype=turn.dtype)).abs().max())
    if away > _RIGID or float(torch.linalg.det(turn)) < 0:
        raise PairError(
            f"symmetric: the start is not rigid (its axes are off by {away:.2g}); take initial_transform auto, rigid, "
            "moments or none, or a file with a rigid transform."
        )
    half = torch.eye(4, dtype=torch.float64)
    vector = Rotation.from_matrix(turn.numpy()).as_rotvec()
    half[:3, :3] = torch.from_numpy(Rotation.from_rotvec(vector / 2).as_matrix())
    half[:3, 3] = torch.linalg.solve(half[:3, :3] + torch.eye(3, dtype=half.dtype), shift)
    return half


def on_mean_grid(pair: Pair, half: Tensor) -> Pair:
    """The pair with its fixed image, and all that belongs to it, half of the start further on the mean grid.

    Args:
        pair: as it was loaded.
        half: of its start; the other half is left.
    """
    affine, size = mean_grid(pair.fixed.image, pair.moving.image, half)
    grid = MetaTensor(torch.zeros(1).expand(1, *size), affine=affine)
    back = torch.linalg.inv(half)

    def seen(image: MetaTensor | None, mode: str = "nearest") -> MetaTensor | None:
        return None if image is None else on_grid_of(grid, image, back, mode=mode)

    fixed = pair.fixed
    points = None if fixed.landmarks is None else fixed.landmarks @ half[:3, :3].T + half[:3, 3]
    image = on_grid_of(grid, fixed.image, back)
    return replace(pair, fixed=Scan(image, seen(fixed.label), seen(fixed.mask), points))


def mean_grid(fixed: MetaTensor, moving: MetaTensor, half: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The mean of the grids of two images in the middle of their start; grids that are the same there stay.

    Its axes are the mean ones, in the order and direction of the fixed image; its voxels have the smaller sides. It
    begins and ends where the images do on average, and goes on for whole voxels as far as one of them does.

    Args:
        fixed: image (C, *spatial).
        moving: the same on a grid of its own.
        half: (4, 4), RAS mm, from the fixed image to the middle, and on to the moving one.

    Returns:
        (4, 4), voxel -> RAS mm, and the shape, D sizes.
    """
    dims = fixed.ndim - 1
    one, size = half @ affine_3d(fixed), torch.tensor(fixed.shape[1:])
    other, sizes = torch.linalg.inv(half) @ affine_3d(moving), torch.tensor(moving.shape[1:])
    along = _directions(one).T @ _directions(other)
    order = torch.from_numpy(linear_sum_assignment(-along[:dims, :dims].abs().numpy())[1])
    reverse = along[range(dims), order] < 0
    other, sizes = other.clone(), sizes[order]
    other[:3, :dims] = other[:3, order]
    other[:3, 3] += other[:3, :dims] @ (reverse * (sizes - 1)).double()
    other[:3, :dims] *= torch.where(reverse, -1.0, 1.0).double()
    if dims == 2 and float(along[2, 2]) < 0:  # a slice seen from its other side
        other[:3, 2] *= -1
    u, _, v = torch.linalg.svd(_directions(one) + _directions(other))
    axes = u @ v
    sides = torch.minimum(*(torch.linalg.vector_norm(x[:3, :3], dim=0) for x in (one, other)))
    side, halves = sides[:dims], [(count - 1).double() / 2 for count in (size, sizes)]
    centres = [x[:3, :dims] @ half_way + x[:3, 3] for x, half_way in zip((one, other), halves, strict=True)]
    middle = (centres[0] + centres[1]) / 2
    ends = []
    for affine, half_way, centre in zip((one, other), halves, centres, strict=True):
        along_axes = axes[:, :dims].T @ (centre - middle)
        extent = torch.linalg.vector_norm(affine[:3, :dims], dim=0) * half_way
        ends.append((along_axes - extent, along_axes + extent))
    begin, end = (torch.stack(x) for x in zip(*ends, strict=True))
    before = ((begin.mean(0) - begin.amin(0)) / side).round()
    after = ((end.amax(0) - end.mean(0)) / side).round()
    between = ((end.mean(0) - begin.mean(0)) / side).round()
    mean = torch.eye(4, dtype=torch.float64)
    mean[:3, :3] = axes * sides
    mean[:3, 3] = middle + axes[:, :dims] @ (begin.mean(0) - before * side)
    return mean, tuple((before + between + after + 1).long().tolist())


def _directions(affine: Tensor) -> Tensor:
    return affine[:3, :3] / torch.linalg.vector_norm(affine[:3, :3], dim=0)
