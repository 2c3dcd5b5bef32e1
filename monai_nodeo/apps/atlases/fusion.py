# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Many label maps on one grid as one.

A vote is a function of a label: its probability at each voxel, in [0, 1]. Labels are gone through one at a time, so
that the memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.geometry.smoothing import GaussianSmoothing

__all__ = ["Fused", "Vote", "fuse", "similarity", "similarity_weights", "staple", "weighted_vote"]

Vote = Callable[[int], Tensor]

# Chosen on ten subjects that benchmarks/atlases.py does not report.
_SIGMA = 1.5  # standard deviation of the surroundings that are compared, in smallest voxel sides
_FLOOR = 0.3  # of the mean squared difference, below which all are alike


class Fused(NamedTuple):
    """Labels and how sure they are, each (*spatial).

    Attributes:
        labels: the most probable one, int64; 0, the background, where no other is.
        probability: of that label.
        confidence: by how much it is more probable than the next one: 1 where all agree, 0 where two are as probable.
    """

    labels: Tensor
    probability: Tensor
    confidence: Tensor


def fuse(values: Sequence[int], vote: Vote) -> Fused:
    """The most probable label of each voxel.

    Args:
        values: labels that there are, without 0, whose probability is what the others leave.
        vote: see the module.
    """
    shares = vote(values[0])
    labels, best = torch.full_like(shares, values[0], dtype=torch.int64), shares
    second, rest = torch.zeros_like(shares), 1 - shares
    for value in (*values[1:], 0):
        shares = rest.clamp_min(0) if value == 0 else vote(value)
        rest = rest - shares
        better = shares >= best if value == 0 else shares > best
        second = torch.where(better, best, torch.maximum(second, shares))
        labels, best = torch.where(better, value, labels), torch.where(better, shares, best)
    return Fused(labels, best.clamp_max(1), (best - second).clamp_max(1))  # rounding


def weighted_vote(shares: Callable[[int], Iterable[Tensor]], weights: Tensor) -> Vote:
    """Each atlas has a say by its weight.

    Args:
        shares: label -> for each of the K atlases how much of each voxel has it, (*spatial), in [0, 1].
        weights: (K, *spatial), or (K, 1, ...) where they are the same everywhere; not negative.
    """
    weights = weights / weights.sum(0)
    return lambda value: sum(w * share for w, share in zip(weights, shares(value), strict=True))


def similarity(fixed: Tensor, image: Tensor) -> float:
    """Share of the variance of an image that a linear function of another one has, both (C, *spatial); in [0, 1]."""
    variance = (fixed - _mean(fixed)).square().sum(0).mean()
    return 1 - float(_squared_error(fixed, image).mean() / variance)


def similarity_weights(fixed: Tensor, warped: Sequence[Tensor], spacing: Sequence[float]) -> Tensor:
    """Weights by how alike the images are around a voxel: the inverse of the mean squared difference there.

    Before, the intensities of each atlas are matched to the image's by linear regression over the image: they need not
    come from one scanner.

    Args:
        fixed: (C, *spatial).
        warped: the atlases' images on its grid, (C, *spatial).
        spacing: voxel size along each axis.

    Returns:
        (K, *spatial), adding up to 1.
    """
    smooth = GaussianSmoothing(len(spacing), _SIGMA).matrices(fixed.shape[1:], spacing=spacing)
    errors = torch.cat([apply_along_axes(_squared_error(fixed, image)[None, None], smooth)[0] for image in warped])
    weights = (errors + _FLOOR * errors.mean() + torch.finfo(errors.dtype).eps).reciprocal()
    return weights / weights.sum(0)


def _squared_error(fixed: Tensor, image: Tensor) -> Tensor:
    """What a linear function of an image leaves of the fixed one, summed over the channels, (*spatial)."""
    f, m = fixed - _mean(fixed), image - _mean(image)
    slope = _mean(f * m) / _mean(m * m).clamp_min(torch.finfo(m.dtype).tiny)
    return (f - slope * m).square().sum(0)


def _mean(image: Tensor) -> Tensor:
    """Of each channel."""
    return image.flatten(1).mean(1).view(-1, *[1] * (image.ndim - 1))


def staple(labels: Sequence[Tensor]) -> tuple[list[int], Vote]:
    """Simultaneous truth and performance level estimation (Warfield et al., 2004; Rohlfing et al., 2004), by ITK.

    Args:
        labels: of each atlas on one grid, (*spatial).

    Returns:
        The labels, without 0, and the vote: the probabilities that ITK's estimate of each atlas' confusions gives.
    """
    stack = torch.stack([label.cpu().long() for label in labels])
    values, ranks = torch.cat([torch.zeros(1, dtype=torch.int64), stack.flatten()]).unique(return_inverse=True)
    ranks = ranks[1:].view(stack.shape)
    images = [sitk.GetImageFromArray(rank.numpy().astype(np.uint16)) for rank in ranks]
    estimate = sitk.MultiLabelSTAPLEImageFilter()
    estimate.SetLabelForUndecidedPixels(len(values))
    estimate.Execute(images)
    tiny = torch.finfo(torch.float64).tiny
    prior = torch.bincount(ranks.flatten(), minlength=len(values)) / ranks.numel()
    tables = [torch.tensor(estimate.GetConfusionMatrix(i), dtype=torch.float64) for i in range(len(images))]
    tables = [table.view(-1, len(values)).clamp_min(tiny).log() for table in tables]  # given label, true label

    def evidence(rank: int) -> Tensor:
        said = (table[seen, rank] for table, seen in zip(tables, ranks, strict=True))
        return sum(said, prior[rank].double().clamp_min(tiny).log())

    total = evidence(0)
    for rank in range(1, len(values)):
        total = torch.logaddexp(total, evidence(rank))
    places = {int(value): rank for rank, value in enumerate(values)}
    return [value for value in places if value], lambda value: (evidence(places[value]) - total).exp().float()
