# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Overlap of label maps, as a term of a registration.

A label map is thousands of ones and zeros a voxel when each label is an image. They are kept in bytes, on the grid of
the points that are integrated, and made real numbers a few labels at a time.
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from monai_nodeo.geometry.resizing import resize
from monai_nodeo.geometry.sampling import sample

__all__ = ["label_loss", "label_shares"]

_AT_ONCE = 4  # labels
_ONE = 255  # of a byte


def label_shares(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """How much of each voxel of another grid each label has.

    Args:
        labels: (B, *spatial), whole numbers; 0 is no label, the others are counted from 1 without a gap.
        size: of the other grid.

    Returns:
        (B, K, *size), in [0, 255], uint8.
    """
    found = [resize((labels == k)[:, None].float(), size) for k in range(1, int(labels.max()) + 1)]
    return torch.cat([(x * _ONE).round_().clamp_(0, _ONE).to(torch.uint8) for x in found], 1)


def label_loss(moving: Tensor, fixed: Tensor, phi: Tensor) -> Tensor:
    """One minus the soft Dice of each label, the mean over the labels (MONAI's ``DiceLoss``).

    Args:
        moving: shares of the labels, (B, K, *spatial), see :py:func:`label_shares`.
        fixed: the same, (B, K, *cloud).
        phi: where the points of the cloud are in the moving image, in [-1, 1], (B, D, *cloud).

    Returns:
        (B,), differentiable in phi.
    """
    dice = DiceLoss(reduction="none")

    def unlike(first: int) -> Tensor:
        one, other = (shares[:, first : first + _AT_ONCE].to(phi) / _ONE for shares in (moving, fixed))
        found: Tensor = dice(sample(one, phi), other).flatten(1)
        return found

    # worked out again on the way back: real numbers of all labels would not fit
    parts = [
        checkpoint(unlike, first, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, moving.shape[1], _AT_ONCE)
    ]
    return torch.cat(parts, 1).mean(1)
