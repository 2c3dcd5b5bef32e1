# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How far a result moves when what it should not depend on is changed; see docs/uncertainty.md."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys
from torch import Tensor

from monai_nodeo.data.masks import with_mask_of_air
from monai_nodeo.data.pair import Pair, PairError, Scan
from monai_nodeo.data.placement import affine_3d, on_grid_of, voxel_sides
from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import Flow
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration.optimisation.trainer import DivergedError
from monai_nodeo.registration.pair_map import PairMap
from monai_nodeo.registration.result import Registration

__all__ = ["Perturbed", "deviation", "perturbed", "ways_of_changed"]

_BLOCK = 12  # voxels; half of the blocks of the fixed image do not count
_START = 0.03  # standard deviation of the angles, and twice that of the shift as a share of the image's side
_NORMAL = 0.6745  # median of the absolute value of a standard normal variable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """A registered pair, changed by what its registration should not depend on.

    Attributes:
        pair: to register from its headers.
        shift: (4, 4), RAS mm: where fixed points go after the flow, before the start of the registration.
        exchanged: the images have changed places: the flow goes back.
    """

    pair: Pair
    shift: Tensor
    exchanged: bool

    def map(self, flow: Flow, grid: ImageGrid) -> PairMap:
        """What the flow of the pair is for the pair before it was changed, on its fixed grid."""
        way = flow.inverse if self.exchanged else flow
        return PairMap(way, grid, torch.eye(4, dtype=torch.float64), self.shift)


def ways_of_changed(
    result: Registration,
    count: int,
    loss: RegistrationLoss,
    register: Callable[[Sequence[Pair]], Sequence[Registration]],
    at_once: int,
) -> list[PairMap]:
    """Register a pair again, changed in several ways.

    Args:
        result: of the pair, with its images.
        count: how often.
        loss: that is minimised; where it takes no masks, no voxels are left out.
        register: registers pairs from their headers.
        at_once: most pairs that it gets.

    Returns:
        What each result is for the flow of the first one; none if one could not be made or was interrupted.
    """
    assert result.pair is not None
    weights = loss.takes_masks
    changed = [perturbed(result, result.settings.seed + number, weights) for number in range(count)]
    ways: list[PairMap] = []
    try:
        for part in (changed[n : n + at_once] for n in range(0, count, at_once)):
            found = register([one.pair for one in part])
            if any(one.interrupted is not None for one in (result, *found)):
                return []
            ways += [c.map(f.flow, result.flow.grid) for c, f in zip(part, found, strict=True)]
    except (PairError, DivergedError) as error:  # the registration is there
        logger.warning("%s: no uncertainty: %s", result.pair.id, error)
        return []
    return ways


def perturbed(registration: Registration, seed: int, weights: bool = True) -> Perturbed:
    """Change a registered pair.

    Both images get noise as strong as what they have; the start is turned and shifted a little; the voxels in half of
    the blocks of 12, drawn at random, do not count, with smooth borders; and if the seed is odd, the images change
    places, on the fixed grid.

    Args:
        registration: with its pair.
        seed: of all that is drawn.
        weights: leave voxels out; losses that take no masks cannot.
    """
    assert registration.pair is not None
    pair, settings = registration.pair, registration.settings
    if settings.mask_air:
        pair = with_mask_of_air(pair)
    draw = torch.Generator().manual_seed(seed)
    shift = _small_turn(pair.fixed.image, draw)
    start = shift if registration.start is None else registration.start.double().cpu() @ shift
    fixed = replace(pair.fixed, image=_noisy(pair.fixed.image, draw), label=None)
    moving = _moved(replace(pair.moving, image=_noisy(pair.moving.image, draw), label=None), torch.linalg.inv(start))
    exchanged = seed % 2 == 1
    if exchanged:
        fixed, moving = _on_grid_of(fixed, moving), fixed
    if weights:
        mask = _weights(fixed.image, draw)
        fixed = replace(fixed, mask=mask if fixed.mask is None else mask * fixed.mask)
    return Perturbed(Pair(fixed, moving, pair.id), shift, exchanged)


def deviation(registration: Registration, displacements: Iterable[Tensor]) -> Tensor:
    """Standard deviation of displacements about that of a registration, all axes together.

    Not about their mean, which is nearer to the truth than the result: see docs/decisions/uncertainty.md.

    Args:
        registration: the result.
        displacements: of its flow, if other things had been as they should not matter, (D, *spatial), voxels.

    Returns:
        (*spatial), mm.
    """
    result = registration.displacement.cpu()
    sides = result.new_tensor(registration.flow.grid.spacing).view(-1, *[1] * (result.ndim - 1))
    total, count = torch.zeros_like(result[0]), 0
    for displacement in displacements:
        total += ((displacement.cpu() - result) * sides).square().sum(0)
        count += 1
    return (total / count).sqrt()


def _noisy(image: MetaTensor, draw: torch.Generator) -> MetaTensor:
    """With noise of the strength that each channel has, but in its air."""
    values = image.as_tensor().cpu()
    noise = torch.randn(values.shape, generator=draw)
    each = (-1, *[1] * (values.ndim - 1))
    sigma = torch.tensor([_noise(channel) for channel in values]).view(each)
    air = values.flatten(1).amin(1).view(each)
    return _like(image, values + noise * sigma * (values > air))


def _noise(channel: Tensor) -> float:
    """Standard deviation of white noise in a channel (*spatial): of the mixed differences along all axes."""
    mixed = channel.double()
    for axis in range(mixed.ndim):
        mixed = mixed.diff(dim=axis)
    mixed = mixed[mixed != 0].abs()
    return float(mixed.median()) / _NORMAL / 2 ** (channel.ndim / 2) if mixed.numel() else 0.0


def _small_turn(image: MetaTensor, draw: torch.Generator) -> Tensor:
    """(4, 4), RAS mm: a random turn about the middle of a grid, and a shift; within the plane of a slice."""
    dims, affine = image.ndim - 1, affine_3d(image)
    sides = torch.tensor(voxel_sides(affine, dims), dtype=torch.float64)
    size = torch.tensor(image.shape[1:])
    frame = affine.clone()
    frame[:3, :dims] /= sides
    frame[:3, 3] += affine[:3, :dims] @ ((size - 1) / 2).double()
    angles = torch.randn(dims, dims, generator=draw, dtype=torch.float64).mul(_START).tril(-1)
    extent = float((sides * size).prod() ** (1 / dims))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:dims, :dims] = torch.linalg.matrix_exp(angles - angles.T)
    turn[:dims, 3] = torch.randn(dims, generator=draw, dtype=torch.float64) * _START / 2 * extent
    return frame @ turn @ torch.linalg.inv(frame)


def _weights(image: MetaTensor, draw: torch.Generator) -> MetaTensor:
    """(1, *spatial), in [0, 1]: 0 in half of the blocks, 1 in the others, linear between their centres."""
    blocks = [max(2, round(n / _BLOCK)) for n in image.shape[1:]]
    count = math.prod(blocks)
    kept = (torch.arange(count) % 2)[torch.randperm(count, generator=draw)].float()
    return _like(image, resize(kept.view(1, 1, *blocks), image.shape[1:])[0])


def _on_grid_of(fixed: Scan, moving: Scan) -> Scan:
    """A scan on the grid of another; its points stay."""
    mask = None if moving.mask is None else on_grid_of(fixed.image, moving.mask, mode="nearest")
    return replace(moving, image=_like(fixed.image, on_grid_of(fixed.image, moving.image)), mask=mask)


def _moved(scan: Scan, move: Tensor) -> Scan:
    """A scan with all that belongs to it in another place, by a map (4, 4) of RAS mm."""
    affine = move @ affine_3d(scan.image)
    points = None if scan.landmarks is None else scan.landmarks @ move[:3, :3].T + move[:3, 3]
    mask = None if scan.mask is None else _like(scan.image, scan.mask, affine)
    return Scan(_like(scan.image, scan.image, affine), mask=mask, landmarks=points)


def _like(image: MetaTensor, values: Tensor, affine: Tensor | None = None) -> MetaTensor:
    """Values on the grid of an image, or on one of its shape with another affine."""
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    place = affine_3d(image) if affine is None else affine
    shape = image.meta.get(MetaKeys.SPATIAL_SHAPE, image.shape[1:])
    meta = {MetaKeys.ORIGINAL_AFFINE: place.numpy(), MetaKeys.SPATIAL_SHAPE: shape}
    return MetaTensor(plain, affine=place, meta=meta)
