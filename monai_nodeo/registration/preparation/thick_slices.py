# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Thick slices: voxels that are longer along one axis than along another are cut into parts for the optimisation.

The parts are about cubes. On the voxels as they are a volume in slices of 4 mm would be deformed, and compared, in
steps of 4 mm, however fine the other image is. The displacement that is found goes back to the voxels of the file.
What lies between the slices is guessed, so that it counts less where it is the fixed image that has them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys
from scipy.interpolate import make_interp_spline
from torch import Tensor

from monai_nodeo.data.pair import Pair
from monai_nodeo.data.placement import voxel_sides
from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.registration.preparation.slice_interpolation import between_slices

__all__ = ["parts_of", "refine", "refined"]

_MOST_VOXELS = 2**24  # of a refined image: 256^3
# Of the slices that a registration puts between those of the image; the rest is a spline. More is better where slices
# were picked and worse where they were averaged.
_SHARE_OF_SLICES = 0.25


def parts_of(image: MetaTensor) -> tuple[int, ...]:
    """Into how many parts voxels have to be cut along each axis to be about cubes.

    Fewer where the image would have more than 256^3 voxels.

    Args:
        image: (C, *spatial).

    Returns:
        D numbers; 1 along an axis that is not cut.
    """
    sides = voxel_sides(image.affine, image.ndim - 1)
    parts = [round(side / min(sides)) for side in sides]
    while max(parts) > 1 and math.prod(image.shape[1:]) * math.prod(parts) > _MOST_VOXELS:
        parts[parts.index(max(parts))] -= 1
    return tuple(parts)


def refined(image: MetaTensor, parts: tuple[int, ...], mode: str = "spline") -> MetaTensor:
    """An image with each voxel cut into parts, over the same field of view.

    Args:
        image: (C, *spatial).
        parts: along each axis.
        mode: ``"spline"``: cubic interpolation between the voxels, within the range of the image; ``"nearest"``: the
            parts have the value of their voxel, as in a mask.

    Returns:
        (C, *(spatial * parts)) with an affine of its own; the same image if nothing is cut.
    """
    if max(parts) == 1:
        return image
    values = image.as_tensor()
    for axis, count in enumerate(parts, start=1):
        if count > 1:
            values = _along(values, axis, count, mode)
    values = values.clamp(float(image.min()), float(image.max()))
    affine = image.affine.clone()
    dims = len(parts)
    cut = torch.tensor(parts, dtype=affine.dtype)
    affine[:3, :dims] /= cut
    affine[:3, 3] -= affine[:3, :dims] @ ((cut - 1) / 2)
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(values, affine=affine, meta=meta)


def refine(pair: Pair) -> tuple[Pair, Tensor | None]:
    """The pair with the voxels of images in thick slices cut into parts, masks too.

    The parts of a volume that is thick along one axis are those of a spline, a quarter of the way to the slices that a
    registration puts there, see `slice_interpolation`.

    Returns:
        the pair, and how sure its fixed image is where its voxels were cut, (1, *spatial), else None: 1 in the middle
        of a slice, falling towards 0 halfway to the next.
    """
    scans = []
    for scan in (pair.fixed, pair.moving):
        parts = parts_of(scan.image)
        image = refined(scan.image, parts)
        _mix_in_slices_between(image, scan.image, parts)
        mask = None if scan.mask is None else refined(scan.mask, parts, mode="nearest")
        scans.append(replace(scan, image=image, mask=mask))
    parts = parts_of(pair.fixed.image)
    certainty = _certainty(scans[0].image, parts) if max(parts) > 1 else None
    return replace(pair, fixed=scans[0], moving=scans[1]), certainty


def _along(values: Tensor, axis: int, count: int, mode: str) -> Tensor:
    """Each voxel cut into parts along one axis of (C, *spatial)."""
    whole = values.repeat_interleave(count, axis)
    if mode == "nearest":
        return whole
    matrices: list[Tensor | None] = [None] * (values.ndim - 1)
    matrices[axis - 1] = _spline_of_parts(values.shape[axis], count).to(values)
    parts = apply_along_axes(values[None], matrices)[0]
    # A spline rings; where nothing changes from slice to slice, as in the air, nothing shall.
    steps = values.diff(dim=axis) != 0
    nothing = torch.zeros_like(steps.narrow(axis, 0, 1))
    changing = torch.cat([nothing, steps], axis) | torch.cat([steps, nothing], axis)
    return torch.where(changing.repeat_interleave(count, axis), parts, whole)


def _mix_in_slices_between(fine: MetaTensor, image: MetaTensor, parts: tuple[int, ...]) -> None:
    """Take a refined volume towards the slices that a registration puts between those of the image, in place."""
    cut = [axis for axis, count in enumerate(parts) if count > 1]
    if len(parts) != 3 or len(cut) != 1:
        return
    axis, count = cut[0], parts[cut[0]]
    spacing = [side for i, side in enumerate(voxel_sides(image.affine, 3)) if i != axis]
    fractions = sorted(((part + 0.5) / count - 0.5) % 1 for part in range(count))
    for channel, slices in zip(fine.as_tensor(), image.as_tensor().float(), strict=True):
        found = between_slices(slices.movedim(axis, 0).unsqueeze(1), spacing, fractions).flatten(0, 2)
        # from the first part that is not before the middle of its slice
        channel.movedim(axis, 0)[count // 2 :][: len(found)].lerp_(found.to(channel), _SHARE_OF_SLICES)


def _certainty(fine: MetaTensor, parts: tuple[int, ...]) -> Tensor:
    """How sure the parts are, (1, *spatial): 1 in the middle of a voxel of the file, towards 0 at its ends."""
    values = torch.ones_like(fine.as_tensor()[:1])
    for axis, count in enumerate(parts):
        if count > 1:
            hat = 1 - (2 * (torch.arange(count) + 0.5) / count - 1).abs()
            line = hat.repeat(values.shape[1 + axis] // count).to(values)
            values *= line.view(-1, *[1] * (len(parts) - 1 - axis))
    return values


@lru_cache(maxsize=16)
def _spline_of_parts(size: int, count: int) -> Tensor:
    """(size * count, size): values of a cubic spline at the centres of the parts, straight beyond the last voxels.

    Halfway between the spline through the values, which is right where slices were picked, and the one whose means over
    the parts they are, which is right where slices were averaged: an image does not say how it was made.
    """
    centres = (np.arange(size * count) + 0.5) / count - 0.5
    nearest = centres.clip(0, size - 1)
    spline = make_interp_spline(np.arange(size), np.eye(size), k=min(3, size - 1))
    picked = spline(nearest)
    if size > 1:
        picked += (centres - nearest)[:, None] * spline(nearest, nu=1)
    averaged = picked @ np.linalg.inv(picked.reshape(size, count, size).mean(1))
    return torch.from_numpy((picked + averaged) / 2).float()
