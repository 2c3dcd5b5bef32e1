# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of a pair that need the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.transforms import Transform

from monai_nodeo.data.pair import MASK_KEYS, PairError, source_name
from monai_nodeo.losses import RegistrationLoss

__all__ = ["CheckMasksD", "CheckMasksDict", "CheckMasksd"]


class CheckMasksd(Transform):
    """Refuse a pair with masks that the loss cannot take, before a start is searched for and anything is optimised.

    Args:
        loss_function: of the registration.
        mask_air: whether `MaskAird` will add a mask.

    Raises:
        PairError: names the masks and the loss.
    """

    def __init__(self, loss_function: RegistrationLoss, mask_air: bool = False) -> None:
        self.loss_function = loss_function
        self.mask_air = mask_air

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Check one pair.

        Args:
            data: perhaps MetaTensors "fixed_mask" and "moving_mask".

        Returns:
            A new dict with the same content.
        """
        masks = [source_name(key, data[key]) for key in MASK_KEYS if key in data]
        if not masks and self.mask_air:
            masks = ["mask_air"]
        if masks:
            try:
                self.loss_function.check_masks()
            except ValueError as error:
                raise PairError(f"{' and '.join(masks)}: {error}") from error
        return dict(data)


CheckMasksD = CheckMasksDict = CheckMasksd
