# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The mean of images, masks and labels on the grid of a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.apps.atlases.fusion import Fused, fuse
from monai_nodeo.apps.templates.member import Member
from monai_nodeo.data.intensity import to_unit_range
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.files import ImageGrid
from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.geometry.smoothing import GaussianSmoothing
from monai_nodeo.metrics.evidence import foreground
from monai_nodeo.registration import PairMap

__all__ = ["Average", "average", "sharpened", "sharpness"]

_SIGMA = 1.0  # of what is sharpened, in smallest voxel sides


@dataclass(frozen=True, eq=False)
class Average:
    """Means over a group.

    Attributes:
        image: with intensities in [0, 1], (C, *spatial).
        mask: share of the masks that count a voxel, (*spatial); None without masks.
        votes: label -> how much of each voxel has it on average, (*spatial); empty without labels.
    """

    image: Tensor
    mask: Tensor | None
    votes: dict[int, Tensor]

    @property
    def labels(self) -> Fused | None:
        """The most probable label of each voxel; None without labels."""
        return fuse(sorted(self.votes), self.votes.__getitem__) if self.votes else None


def average(members: Sequence[Member], shape: PairMap, with_labels: bool = False) -> Average:
    """The means on the grid of a template; all is interpolated once, from its own voxels, linearly.

    Args:
        members: in an order of their own, as sums depend on it in the last digit.
        shape: from the template to the one of the members' flows.
        with_labels: average the label maps, too.
    """
    grid = shape.grid
    reference = MetaTensor(torch.zeros(1).expand(1, *grid.spatial_shape), affine=torch.from_numpy(grid.affine.copy()))
    images, masks = _Mean(), _Mean()
    labels: dict[int, _Mean] = {}
    labelled = 0
    for member in members:
        scan, ddf = member.scan(), member.displacement(shape)

        def seen(image: MetaTensor, member: Member = member, ddf: Tensor = ddf) -> Tensor:
            return on_grid_of(reference, image, member.start, ddf).as_tensor().cpu()

        images.add(seen(to_unit_range(scan.image)))
        if scan.mask is not None:
            masks.add(seen(scan.mask)[0])
        if with_labels and scan.label is not None:
            labelled += 1
            for value in sorted({int(v) for v in scan.label.unique()} - {0}):
                labels.setdefault(value, _Mean()).add(seen(_where(scan.label, value))[0])
    votes = {value: vote.over(labelled) for value, vote in labels.items()}
    return Average(images.over(len(members)), masks.over(masks.count) if masks.count else None, votes)


def sharpened(image: Tensor, amount: float, spacing: Sequence[float]) -> Tensor:
    """Unsharp masking: what a Gaussian of one voxel takes away is added, within the range of each channel.

    Args:
        image: (C, *spatial).
        amount: how often it is added; 0: not at all.
        spacing: voxel size along each axis.
    """
    smooth = GaussianSmoothing(len(spacing), _SIGMA)
    spatial = tuple(range(1, image.ndim))
    low, high = image.amin(spatial, keepdim=True), image.amax(spatial, keepdim=True)
    blurred = apply_along_axes(image[None], smooth.matrices(image.shape[1:], spacing=spacing))[0]
    return (image + amount * (image - blurred)).clamp(low, high)


def sharpness(image: Tensor, grid: ImageGrid) -> float:
    """Mean length of the gradient of an image (*spatial) where it is no air, per mm."""
    values = image.double().numpy()
    length = np.linalg.norm(np.stack(np.gradient(values, *grid.spacing)), axis=0)
    return float(length[foreground(values)].mean())


def _where(label: MetaTensor, value: int) -> MetaTensor:
    return MetaTensor((label.as_tensor() == value).float(), affine=label.affine)


class _Mean:
    """A sum, and of how many."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor) -> None:
        self.sum = values.clone() if self.sum is None else self.sum.add_(values)
        self.count += 1

    def over(self, count: int) -> Tensor:
        assert self.sum is not None
        return self.sum / count
