# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A loss that counts less where the images cannot be explained, however they are moved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_nodeo.losses.similarity import ImageLoss

__all__ = ["TemperedLoss"]


class TemperedLoss(ImageLoss):
    """The loss x itself up to a limit a, and ``a (1 + log(x / a))`` above it.

    What stays unexplained is noise, or what only one image shows. A fixed weight would fit the flow to it. The
    logarithm is, up to factors, the negative likelihood of residuals whose variance is not known: the pull falls as
    what is unexplained grows (profile likelihood; see docs/decisions/intensity-term.md).

    Args:
        loss: 0 for images that are explained, and never below.
        above: the limit, in units of the loss.

    Raises:
        ValueError: for a limit that is not above 0.
    """

    def __init__(self, loss: ImageLoss, above: float) -> None:
        super().__init__()
        if not above > 0:
            raise ValueError(f"above is {above}, expected more than 0.")
        self.loss = loss
        self.above = above

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`."""
        return self._tempered(self.loss(input, target, weight, spacing))

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        return self._tempered(self.loss.of_each(input, target, weight, spacing))

    def _tempered(self, value: Tensor) -> Tensor:
        below = value.clamp(max=self.above)
        return below + self.above * (value.clamp(min=self.above) / self.above).log()
