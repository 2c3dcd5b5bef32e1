# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The objective of a registration: all its terms and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from monai_nodeo.losses.landmarks import landmark_loss
from monai_nodeo.losses.regularity import DDFLoss
from monai_nodeo.losses.similarity import ImageLoss, each_item

__all__ = ["RegistrationLoss"]

Terms = Mapping[str, tuple[float, nn.Module]]


class RegistrationLoss(nn.Module):
    """Similarity of the images plus weighted terms of the images, of the displacement and of the velocity.

    Args:
        similarity: loss of (warped, fixed), for instance :py:class:`LocalNCCLoss` or any MONAI image loss.
        image_terms: name -> (weight, loss of (warped, fixed)), for instance :py:class:`IntensityLoss`.
        ddf_terms: name -> (weight, loss of the ddf in voxels), for instance MONAI's ``BendingEnergyLoss``.
        velocity_terms: name -> (weight, loss of a velocity in voxels per unit time), averaged over the velocities.
        landmark_weight: of the mean squared distance of landmarks in mm^2, for pairs that have some.

    Raises:
        ValueError: when a name is taken twice, or is one that the trainer's output has.
    """

    similarity: nn.Module

    def __init__(
        self,
        similarity: nn.Module,
        image_terms: Terms | None = None,
        ddf_terms: Terms | None = None,
        velocity_terms: Terms | None = None,
        landmark_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.image_terms = dict(image_terms or {})
        self.ddf_terms = dict(ddf_terms or {})
        self.velocity_terms = dict(velocity_terms or {})
        self.landmark_weight = landmark_weight
        names = [
            "loss",
            "ddf",
            "level",
            "similarity",
            "landmarks",
            *self.image_terms,
            *self.ddf_terms,
            *self.velocity_terms,
        ]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} of a loss term is taken; the names are {names}.")

    def check_masks(self) -> None:
        """Find out before the work whether all image losses can take masks.

        Raises:
            ValueError: names a loss that is no :py:class:`ImageLoss`, and what to do.
        """
        for loss in (self.similarity, *(loss for factor, loss in self.image_terms.values() if factor)):
            if not isinstance(loss, ImageLoss):
                raise ValueError(
                    f"{type(loss).__name__} cannot take masks; register without them, or use LocalNCCLoss, the preset "
                    "multimodal or mind_ssc, or another loss that derives from ImageLoss."
                )

    def forward(
        self,
        warped: Tensor,
        fixed: Tensor,
        ddf: Tensor,
        velocities: Sequence[Tensor],
        weight: Tensor | None = None,
        spacing: Sequence[float] | None = None,
        ddf_spacing: Sequence[float] | None = None,
        coarseness: float = 1.0,
        landmarks: Tensor | None = None,
        certainty: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Every term, unweighted, and their weighted sum under ``"loss"``.

        Args:
            warped: moving image on the fixed grid, (B, C, *spatial).
            fixed: fixed image, (B, C, *spatial).
            ddf: displacement in voxels of its own grid, (B, D, *spatial of the cloud).
            velocities: each like ``ddf``, per unit time.
            weight: how much each voxel of the images counts, (B, 1, *spatial); None: all the same.
            spacing: voxel size of the images in mm, by default cubes.
            ddf_spacing: voxel size of the grid of ``ddf`` in mm, by default cubes.
            coarseness: factor on the weights of the velocity terms, the side of a coarse level's voxels in finest ones;
                with the same weight coarse levels overshoot.
            landmarks: (B, N, 2, D) in voxels of the grid of ``ddf``, see :py:mod:`monai_nodeo.losses.landmarks`.
            certainty: a further weight, of which an image loss that is no :py:class:`ImageLoss` makes nothing.

        Returns:
            name -> its value for each pair of the batch, (B,); a term of weight 0 is left out.

        Raises:
            ValueError: when there are weights and an image loss that is no :py:class:`ImageLoss` cannot take them.
        """
        if weight is not None:
            self.check_masks()
        weight = _product(weight, certainty)
        terms = {"similarity": _image_loss(self.similarity, warped, fixed, weight, spacing)}
        total = terms["similarity"]
        for name, (factor, loss) in self.image_terms.items():
            if factor:
                terms[name] = _image_loss(loss, warped, fixed, weight, spacing)
                total = total + factor * terms[name]
        for losses, fields, scale in ((self.ddf_terms, [ddf], 1.0), (self.velocity_terms, velocities, coarseness)):
            for name, (factor, loss) in losses.items():
                if factor:
                    terms[name] = torch.stack([_field_loss(loss, field, ddf_spacing) for field in fields]).mean(0)
                    total = total + scale * factor * terms[name]
        if landmarks is not None and self.landmark_weight:
            spacing_of_ddf = ddf_spacing or (1.0,) * (ddf.ndim - 2)
            terms["landmarks"] = landmark_loss(ddf, landmarks, spacing_of_ddf)
            total = total + self.landmark_weight * terms["landmarks"]
        return {"loss": total, **terms}


def _image_loss(
    loss: nn.Module,
    warped: Tensor,
    fixed: Tensor,
    weight: Tensor | None,
    spacing: Sequence[float] | None,
) -> Tensor:
    """The loss of each item; one that takes no weight does without."""
    if isinstance(loss, ImageLoss):
        return loss.of_each(warped, fixed, weight, spacing)
    return torch.stack([loss(*pair) for pair in zip(each_item(warped), each_item(fixed), strict=True)])


def _product(weight: Tensor | None, certainty: Tensor | None) -> Tensor | None:
    if weight is None or certainty is None:
        return certainty if weight is None else weight
    return weight * certainty


def _field_loss(loss: nn.Module, field: Tensor, spacing: Sequence[float] | None) -> Tensor:
    if isinstance(loss, DDFLoss):
        return loss.of_each(field, spacing)
    return torch.stack([loss(item) for item in each_item(field)])
