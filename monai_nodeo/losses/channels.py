# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A loss for each channel: T1 by one similarity, a diffusion map by another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from monai_nodeo.losses.similarity import ImageLoss, each_item

__all__ = ["ChannelLoss", "loss_of_each"]


class ChannelLoss(ImageLoss):
    """Weighted mean of losses, each of a channel of its own.

    The channels of the target are kept while the same tensor is passed, so that the losses know them again.

    Args:
        losses: one a channel, of (warped, fixed) with one channel.
        weights: of the channels, not negative.

    Raises:
        ValueError: when there are not as many weights as losses, or no weight is above 0.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if len(losses) != len(weights) or min(weights, default=0) < 0 or not sum(weights):
            raise ValueError(f"the weights {list(weights)} of {len(losses)} channels; expected one each, some above 0.")
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self._kept = WeakTensorKeyDictionary()  # target -> its version and its channels, as long as it lives

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}  # cannot be sent elsewhere

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._kept = WeakTensorKeyDictionary()

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`.

        Raises:
            ValueError: when there are not as many channels as losses.
        """
        return self.of_each(input, target, weight, spacing).mean()

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        if input.shape[1] != len(self.losses) or target.shape != input.shape:
            raise ValueError(
                f"expected two images of one shape with {len(self.losses)} channels, got {tuple(input.shape)} and "
                f"{tuple(target.shape)}."
            )
        channels = zip(self.losses, self.weights, input.split(1, 1), self._channels(target), strict=True)
        total = input.new_zeros(len(input))
        for loss, share, warped, fixed in channels:
            if share:
                total = total + share * loss_of_each(loss, warped.contiguous(), fixed, weight, spacing)
        return total

    def _channels(self, target: Tensor) -> tuple[Tensor, ...]:
        if target.is_inference():  # has no version, so a change could not be seen
            return tuple(x.contiguous() for x in target.split(1, 1))
        version, channels = self._kept.get(target, (None, ()))
        if version != target._version:
            channels = tuple(x.contiguous() for x in target.detach().split(1, 1))
            self._kept[target] = (target._version, channels)
        return channels


def loss_of_each(
    loss: nn.Module,
    warped: Tensor,
    fixed: Tensor,
    weight: Tensor | None = None,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Any loss of two images for each item, (B,); one that takes no weight does without."""
    if isinstance(loss, ImageLoss):
        return loss.of_each(warped, fixed, weight, spacing)
    return torch.stack([loss(*pair) for pair in zip(each_item(warped), each_item(fixed), strict=True)])
