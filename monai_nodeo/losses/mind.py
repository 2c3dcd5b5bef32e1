# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Self-similarity context: a similarity of images whose contrasts have nothing to do with one another."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import combinations

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.losses.similarity import VoxelwiseLoss

__all__ = ["MINDSSCLoss", "mind_ssc"]

_VARIANCE_RANGE = 1e-3, 1e3  # of its mean over the image
_SMALLEST_WEIGHT = 1e-6


def mind_ssc(image: Tensor, radius: int = 1, dilation: int = 2, spacing: Sequence[float] | None = None) -> Tensor:
    """Self-similarity context of every voxel (Heinrich et al., MICCAI 2013).

    How alike are the patches around two of a voxel's neighbours? Asked of all pairs of direct neighbours that do not
    face each other, the answers tell of edges and corners, whatever is bright or dark.

    Args:
        image: (B, 1, *spatial), D = 2 or 3 spatial axes.
        radius: patches have 2 * radius + 1 voxels along a side.
        dilation: distance of the neighbours from the voxel. Both are in units of the smallest voxel side.
        spacing: voxel size along each axis; by default the voxels are cubes.

    Returns:
        (B, 4 or 12, *spatial), in (0, 1], 1 for the pairs of patches that are most alike: ``exp(-D / V)``, where D is
        the mean squared difference of two patches, less the smallest of a voxel, and V its mean over the pairs.

    Raises:
        ValueError: when the image has several channels.
    """
    dims = image.ndim - 2
    if image.shape[1] != 1:
        raise ValueError(f"the image has shape {tuple(image.shape)}, expected (B, 1, *spatial), a channel at a time.")
    sides = [1.0] * dims if spacing is None else list(spacing)
    radii = [round(radius * min(sides) / side) for side in sides]
    steps = [max(1, round(dilation * min(sides) / side)) for side in sides]
    # Differences are made of a larger image, so that patches at the border have all their voxels.
    reach = [n for r, d in zip(reversed(radii), reversed(steps), strict=True) for n in (r + d, r + d)]
    padded = F.pad(image, reach, mode="replicate")
    neighbours = [(axis, sign) for axis in range(dims) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in combinations(neighbours, 2) if a[0] != b[0]]
    views = {neighbour: _shifted(padded, *neighbour, steps) for neighbour in neighbours}
    squares = torch.cat([(views[a] - views[b]).square() for a, b in pairs], dim=1)
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    distances = pool(squares, [2 * r + 1 for r in radii], stride=1)
    distances = distances - distances.amin(1, keepdim=True)
    variance = distances.mean(1, keepdim=True)
    # Without noise V is 0 where nothing is, with a step in the image it is huge: neither may decide alone.
    typical = variance.detach().mean(dim=tuple(range(1, image.ndim)), keepdim=True)
    low, high = (limit * typical for limit in _VARIANCE_RANGE)
    tiny = torch.finfo(image.dtype).tiny
    return torch.exp(-distances / torch.maximum(torch.minimum(variance, high), low.clamp(min=tiny)))


def _shifted(padded: Tensor, axis: int, sign: int, steps: Sequence[int]) -> Tensor:
    """The image seen from a neighbour: without its step at every border, shifted along one axis."""
    view = padded
    for other, step in enumerate(steps):
        start = step + (sign * step if other == axis else 0)
        view = view.narrow(2 + other, start, padded.shape[2 + other] - 2 * step)
    return view


class MINDSSCLoss(VoxelwiseLoss):
    """Mean squared difference of the self-similarity contexts of two images, of any two contrasts.

    The descriptor of the target is kept while the same tensor is passed.

    Args:
        spatial_dims: 2 or 3.
        radius: see :py:func:`mind_ssc`.
        dilation: see :py:func:`mind_ssc`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a map (B, 1, *spatial), the mean over the descriptor).

    Raises:
        ValueError: when ``radius`` or ``dilation`` is below 1.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        radius: int = 1,
        dilation: int = 2,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__()
        self.reduction = LossReduction(reduction).value
        if min(radius, dilation) < 1:
            raise ValueError(f"radius {radius} and dilation {dilation} must be at least 1 voxel.")
        self.spatial_dims = spatial_dims
        self.radius = radius
        self.dilation = dilation
        self._kept: tuple[weakref.ref, int, Sequence[float] | None, Tensor] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}  # a weak reference can be neither copied nor sent elsewhere

    def _descriptor_of_target(self, target: Tensor, spacing: Sequence[float] | None) -> Tensor:
        if target.is_inference():  # has no version, so a change could not be seen
            return mind_ssc(target, self.radius, self.dilation, spacing)
        if self._kept is not None:
            reference, version, kept_spacing, descriptor = self._kept
            if reference() is target and (version, kept_spacing) == (target._version, spacing):
                return descriptor
        descriptor = mind_ssc(target.detach(), self.radius, self.dilation, spacing)
        self._kept = (weakref.ref(target), target._version, spacing, descriptor)
        return descriptor

    def _map(self, input: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None) -> Tensor:
        if input.shape != target.shape or input.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected two images (B, 1) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(input.shape)} and {tuple(target.shape)}."
            )
        descriptors = mind_ssc(input, self.radius, self.dilation, spacing), self._descriptor_of_target(target, spacing)
        values = (descriptors[0] - descriptors[1]).square().mean(1, keepdim=True)
        return values if weight is None else values * weight
