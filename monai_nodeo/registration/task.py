# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A pair on its way through the optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai_nodeo.files import ImageGrid
from monai_nodeo.registration.choice import Choice
from monai_nodeo.registration.optimisation.levels import Level, PairBatch
from monai_nodeo.registration.preparation.prepared_pair import Prepared, grid_of_nodes
from monai_nodeo.registration.settings import Settings

__all__ = ["Task"]


@dataclass(frozen=True, eq=False)
class Task:
    """A prepared pair, and what it is optimised with.

    Attributes:
        prepared: the pair.
        grid: of the fixed image as it is stored.
        tensors: of the pair, without the air around it.
        settings: of the optimisation.
        choice: how the images changed them; None: they did not.
        recorded: settings as the result tells them, of all channels.
    """

    prepared: Prepared
    grid: ImageGrid
    tensors: PairBatch
    settings: Settings
    choice: Choice | None
    recorded: Settings

    @property
    def kind(self) -> Any:
        """What pairs have in common that are optimised together."""
        extras = [None if x is None else x.shape for x in (self.tensors.fixed_mask, self.tensors.moving_mask)]
        points, labels = self.tensors.landmarks, self.tensors.labels
        count = None if labels is None else int(labels.max())
        shapes = (self.tensors.fixed.shape, *extras, None if points is None else points.shape)
        return (self.settings, self.prepared.spacing, count, *shapes)

    def domain(self, level: Level) -> ImageGrid:
        """Grid of the nodes of a level's velocity, in the space of the fixed image."""
        prepared = self.prepared
        return prepared.in_fixed(grid_of_nodes(prepared.matched.fixed, prepared.box, level, self.grid))
