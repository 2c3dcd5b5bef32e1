# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A registration backend for monai-physio (https://github.com/Project-MONAI/monai-physio), which has to be installed.

Example:
    >>> registrar = RegisterImagesNodeo()
    >>> registrar.set_fixed_image(fixed)  # images of itk
    >>> registrar.register(moving)["fixed_to_moving_transform"]  # warps the moving image to the fixed grid
"""

from __future__ import annotations

from typing import Any

import torch
from monai_physio import RegisterImagesBase

from monai_nodeo.files.itk_python import itk_python_transform
from monai_nodeo.registration import Settings, register

__all__ = ["RegisterImagesNodeo"]


class RegisterImagesNodeo(RegisterImagesBase):
    """Registers by a flow, see :py:func:`monai_nodeo.register`. Masks and label maps count where both are given.

    Label maps pull where the settings have a ``label_weight``.

    Attributes:
        settings: or the name of a preset; None: ``"fast"`` in monai-physio's fast mode, otherwise the default.
        device: where to compute; by default a GPU if there is one.
    """

    settings: Settings | str | None = None
    device: torch.device | str | None = None

    def registration_method(
        self, moving_image: Any, moving_mask: Any = None, moving_labelmap: Any = None, moving_image_pre: Any = None
    ) -> dict[str, Any]:
        """Called by ``register``; images, masks and label maps are images of ``itk``.

        Returns:
            "fixed_to_moving_transform" and "moving_to_fixed_transform", each an ``itk.CompositeTransform``, and "loss",
            the similarity loss in the end.

        Raises:
            ValueError: without a fixed image, or when something is wrong with an image; the message names it.
        """
        if self.fixed_image is None:
            raise ValueError("there is no fixed image; call set_fixed_image first.")
        labels = self.fixed_labelmap is not None and moving_labelmap is not None
        found = register(
            self.fixed_image if self.fixed_image_pre is None else self.fixed_image_pre,
            moving_image if moving_image_pre is None else moving_image_pre,
            self.settings or ("fast" if self.fast_mode else None),
            fixed_mask=self.fixed_mask,
            moving_mask=moving_mask,
            fixed_label=self.fixed_labelmap if labels else None,
            moving_label=moving_labelmap if labels else None,
            device=self.device,
            handlers=(),
        )
        return {
            "fixed_to_moving_transform": itk_python_transform(found.transform),
            "moving_to_fixed_transform": itk_python_transform(found.inverse.transform),
            "loss": found.similarity[1],
        }
