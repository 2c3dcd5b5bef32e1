# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The objective of a registration: all its terms and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from monai_nodeo.losses.channels import ChannelLoss, loss_of_each
from monai_nodeo.losses.landmarks import landmark_loss
from monai_nodeo.losses.regularity import DDFLoss
from monai_nodeo.losses.similarity import ImageLoss, each_item

__all__ = ["RegistrationLoss"]

Terms = Mapping[str, tuple[float, nn.Module]]


class RegistrationLoss(nn.Module):
    """Similarity of the images plus weighted terms of the images, the displacement, the velocity and the trajectory.

    Args:
        similarity: loss of (warped, fixed), for instance :py:class:`LocalNCCLoss` or any MONAI image loss.
        image_terms: name -> (weight, loss of (warped, fixed)), for instance :py:class:`IntensityLoss`.
        ddf_terms: name -> (weight, loss of the ddf in voxels), for instance MONAI's ``BendingEnergyLoss``.
        velocity_terms: name -> (weight, loss of a velocity in voxels per unit time), averaged over the velocities.
        trajectory_terms: name -> (weight, loss of the displacements on the way, (T, B, D, *spatial) voxels -> (B,)).
        trajectory_times: those T times, from 0 to 1, if there are such terms; the solver has to take them.
        landmark_weight: of the mean squared distance of landmarks in finest voxel sides, for pairs that have some.
        label_weight: of one minus the Dice of labels, for pairs whose labels are used.

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
        trajectory_terms: Terms | None = None,
        trajectory_times: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        landmark_weight: float = 0.01,
        label_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        kinds = {"image": image_terms, "ddf": ddf_terms, "velocity": velocity_terms, "trajectory": trajectory_terms}
        names = [
            "loss",
            "ddf",
            "level",
            "similarity",
            "landmarks",
            "labels",
            *[name for of in kinds.values() for name in of or ()],
        ]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} of a loss term is taken; the names are {names}.")
        self.terms = nn.ModuleDict(
            {
                kind: nn.ModuleDict({name: loss for name, (weight, loss) in (terms or {}).items() if weight})
                for kind, terms in kinds.items()
            }
        )
        self.weights = {name: weight for terms in kinds.values() for name, (weight, _) in (terms or {}).items()}
        self.times = tuple(trajectory_times) if len(self._of("trajectory")) else (0.0, 1.0)
        self.landmark_weight = landmark_weight
        self.label_weight = label_weight

    def _of(self, kind: str) -> nn.ModuleDict:
        terms = self.terms[kind]
        assert isinstance(terms, nn.ModuleDict)
        return terms

    @property
    def takes_masks(self) -> bool:
        """Whether all image losses can take masks."""
        try:
            self.check_masks()
        except ValueError:
            return False
        return True

    def check_masks(self) -> None:
        """Find out before the work whether all image losses can take masks.

        Raises:
            ValueError: names a loss that is no :py:class:`ImageLoss`, and what to do.
        """
        images = [self.similarity, *self._of("image").values()]
        for loss in [part for x in images for part in (x.losses if isinstance(x, ChannelLoss) else [x])]:
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
        trajectory: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Every term, unweighted, and their weighted sum under ``"loss"``.

        Args:
            warped: moving image on the fixed grid, (B, C, *spatial).
            fixed: fixed image, (B, C, *spatial).
            ddf: displacement in voxels of its own grid, (B, D, *spatial of the cloud).
            velocities: each in voxels of its own grid per unit time, (B, D, *spatial of its nodes); without any, the
                velocity terms are left out.
            weight: how much each voxel of the images counts, (B, 1, *spatial); None: all the same.
            spacing: voxel size of the images in mm, by default cubes.
            ddf_spacing: voxel size of the grids of ``ddf`` and the velocities in mm, by default cubes.
            coarseness: the side of a coarse level's voxels in finest ones, a factor on the weights of the velocity
                terms; with the same weight coarse levels overshoot.
            landmarks: (B, N, 2, D) in voxels of the grid of ``ddf``, see :py:mod:`monai_nodeo.losses.landmarks`.
            certainty: per-voxel confidence, (B, 1, *spatial); ignored by losses that take no weights.
            trajectory: displacements at ``trajectory_times``, (T, *shape of ddf); for trajectory terms only.
            labels: one minus the Dice of labels, (B,), see :py:mod:`monai_nodeo.losses.labels`.

        Returns:
            name -> its value for each pair of the batch, (B,); a term of weight 0 is left out.

        Raises:
            ValueError: when there are weights and an image loss that is no :py:class:`ImageLoss` cannot take them.
        """
        if weight is not None:
            self.check_masks()
        weight = _product(weight, certainty)
        terms = {"similarity": loss_of_each(self.similarity, warped, fixed, weight, spacing)}
        for name, loss in self._of("image").items():
            terms[name] = loss_of_each(loss, warped, fixed, weight, spacing)
        for name, loss in self._of("ddf").items():
            terms[name] = _field_loss(loss, ddf, ddf_spacing)
        if velocities:
            terms |= self._velocity_terms(velocities, ddf_spacing)
        for name, loss in self._of("trajectory").items():
            terms[name] = loss(trajectory)
        if landmarks is not None and self.landmark_weight:
            side = min(spacing or [1.0]) / coarseness  # not mm, or the pull would grow with the voxels
            terms["landmarks"] = landmark_loss(
                ddf, landmarks, [distance / side for distance in ddf_spacing or (1.0,) * (ddf.ndim - 2)]
            )
        if labels is not None:
            terms["labels"] = labels
        return {"loss": self._total(terms, coarseness), **terms}

    def of_velocities(
        self, velocities: Sequence[Tensor], spacing: Sequence[float] | None = None, coarseness: float = 1.0
    ) -> dict[str, Tensor]:
        """The velocity terms alone, and their weighted sum under ``"loss"``; empty where there are none.

        Args:
            velocities: as for :py:meth:`forward`.
            spacing: voxel size of their grid in mm, by default cubes.
            coarseness: see there.
        """
        terms = self._velocity_terms(velocities, spacing)
        return {"loss": self._total(terms, coarseness), **terms} if terms else {}

    def _velocity_terms(self, velocities: Sequence[Tensor], spacing: Sequence[float] | None) -> dict[str, Tensor]:
        return {
            name: torch.stack([_field_loss(loss, field, spacing) for field in velocities]).mean(0)
            for name, loss in self._of("velocity").items()
        }

    def _total(self, terms: Mapping[str, Tensor], coarseness: float) -> Tensor:
        """The weighted sum."""
        weights = {
            "similarity": 1.0,
            "landmarks": self.landmark_weight,
            "labels": self.label_weight,
            **self.weights,
        }
        scales = dict.fromkeys(self._of("velocity"), coarseness)
        total = sum(weights[name] * scales.get(name, 1.0) * value for name, value in terms.items())
        assert isinstance(total, Tensor)
        return total


def _product(weight: Tensor | None, certainty: Tensor | None) -> Tensor | None:
    if weight is None or certainty is None:
        return certainty if weight is None else weight
    return weight * certainty


def _field_loss(loss: nn.Module, field: Tensor, spacing: Sequence[float] | None) -> Tensor:
    if isinstance(loss, DDFLoss):
        return loss.of_each(field, spacing)
    return torch.stack([loss(item) for item in each_item(field)])
