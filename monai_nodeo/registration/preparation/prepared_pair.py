# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From a pair as it was loaded to what is optimised: start, parts of thick slices, one grid, one range of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.intensity import to_unit_range
from monai_nodeo.data.masks import with_mask_of_air, with_mask_of_view
from monai_nodeo.data.matched_pair import MatchedPair, match, matched_labels
from monai_nodeo.data.pair import Pair, PairError, source_name
from monai_nodeo.data.placement import affine_3d, voxel_sides
from monai_nodeo.data.start import Start, find_start
from monai_nodeo.files import ImageGrid
from monai_nodeo.geometry.cropping import Box, box_size, foreground_box
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration.optimisation.levels import Level, PairBatch
from monai_nodeo.registration.preparation.large_images import in_larger_voxels
from monai_nodeo.registration.preparation.symmetric import half_of, on_mean_grid, symmetric_start, with_masks_of_air
from monai_nodeo.registration.preparation.thick_slices import refine
from monai_nodeo.registration.settings import Settings

__all__ = ["Prepared", "grid_like", "grid_of_nodes", "prepare"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair, ready to be optimised.

    Attributes:
        start: where the pair starts from.
        matched: both images on one grid, with values in [0, 1].
        box: the part of the grid that is optimised, without the air around the images.
        half: (4, 4), RAS mm, from the fixed image to that grid, see `preparation.symmetric`; None: it is its own.
    """

    start: Start
    matched: MatchedPair
    box: Box
    half: Tensor | None = None

    def in_fixed(self, grid: ImageGrid) -> ImageGrid:
        """A grid in the space of ``matched`` as one in that of the fixed image."""
        return grid if self.half is None else replace(grid, affine=np.linalg.inv(self.half.numpy()) @ grid.affine)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size of the grid along each axis, mm."""
        return voxel_sides(self.matched.fixed.affine, self.matched.fixed.ndim - 1)

    def batch(self, device: torch.device) -> PairBatch:
        """The tensors of the pair as a batch of one, float32."""
        names = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_certainty", "landmarks", "labels")
        tensors = {name: getattr(self.matched, name) for name in names}
        parts: dict[str, Any] = {name: None if x is None else _trainable(x, device) for name, x in tensors.items()}
        return PairBatch(**parts)

    def held_by(self, batch: PairBatch) -> Prepared:
        """The same with images and masks of :py:meth:`batch` in place of its own, so that they are in memory once."""
        fixed, moving = (
            MetaTensor(values[0], affine=image.affine, meta={k: x for k, x in image.meta.items() if k != "affine"})
            for values, image in ((batch.fixed, self.matched.fixed), (batch.moving, self.matched.moving))
        )
        masks = (None if mask is None else mask[0] for mask in (batch.fixed_mask, batch.moving_mask))
        return replace(self, matched=MatchedPair(fixed, moving, *masks))


def prepare(pair: Pair, settings: Settings, loss: RegistrationLoss) -> Prepared:
    """Find the start and bring the pair to one grid.

    Raises:
        PairError: when the loss cannot take masks that are given, the images cannot be aligned, or do not overlap;
            or labels are to be used that there are not.
    """
    _check_masks(pair, settings, loss)
    initial, half = pair.start or settings.initial_transform, None
    start = symmetric_start(pair, initial) if settings.symmetric else find_start(pair, initial)
    rest = start.affine
    if settings.mask_air:
        pair = with_masks_of_air(pair) if settings.symmetric else with_mask_of_air(pair)
    if settings.symmetric:
        rest = half = half_of(start.affine)
        fine, certainty = on_mean_grid(pair, half), None
    else:
        fine, certainty = refine(pair)
    matched = match(fine, rest, certainty)
    if loss.takes_masks:
        matched = with_mask_of_view(matched, fine.moving.image, rest)
    matched = replace(matched, fixed=to_unit_range(matched.fixed), moving=to_unit_range(matched.moving))
    box: Box = (slice(None),) * settings.spatial_dims
    if settings.crop_air:
        box = foreground_box(matched.fixed.as_tensor()[None], matched.moving.as_tensor()[None])
    if settings.max_voxels is not None:
        matched, box = in_larger_voxels(matched, box, settings.max_voxels)
    labels = matched_labels(fine, matched.fixed, rest) if settings.label_weight else None
    return Prepared(start, replace(matched, labels=labels), box, half)


def grid_of_nodes(fixed: MetaTensor, box: Box, level: Level, grid: ImageGrid) -> ImageGrid:
    """Grid of the nodes of a level's velocity.

    Args:
        fixed: the image whose voxels in a box were optimised.
        box: see there.
        level: whose cloud it is.
        grid: of the image as it is stored.
    """
    affine = affine_3d(fixed).numpy().copy()
    starts = [part.start or 0 for part in box]
    affine[:3, 3] += affine[:3, : len(starts)] @ np.array(starts, float)
    for axis, (n, m) in enumerate(zip(box_size(box, fixed.shape[1:]), level.cloud_size, strict=True)):
        affine[:3, axis] *= (n - 1) / max(m - 1, 1)
    return grid_like(grid, affine, level.cloud_size)


def grid_like(grid: ImageGrid, affine: np.ndarray, size: Sequence[int]) -> ImageGrid:
    """A grid in the space of another: of a slice with a third axis if that has one."""
    shape = (*size, *[1] * (len(grid.shape) - len(size)))
    return ImageGrid(affine, shape, grid.sform_code, grid.qform_code)


def _check_masks(pair: Pair, settings: Settings, loss: RegistrationLoss) -> None:
    """Before a start is searched for and anything is optimised."""
    scans = (("fixed_mask", pair.fixed), ("moving_mask", pair.moving))
    masks = [source_name(key, scan.mask) for key, scan in scans if scan.mask is not None]
    if not masks and settings.mask_air:
        masks = ["mask_air"]
    if masks:
        try:
            loss.check_masks()
        except ValueError as error:
            raise PairError(f"{' and '.join(masks)}: {error}") from error


def _trainable(x: Tensor, device: torch.device) -> Tensor:
    """With a batch axis, fit for autograd.

    Where a tensor begins in memory decides about the last bit of its sums: copies begin alike.
    """
    plain = x.as_tensor() if isinstance(x, MetaTensor) else x
    return plain.detach()[None].to(device, copy=True).float().contiguous()
