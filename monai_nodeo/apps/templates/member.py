# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""An image of the group, and the way to it from a template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import PairError, Scan
from monai_nodeo.flows import Flow
from monai_nodeo.registration import PairMap

__all__ = ["Member", "load_scan"]


def load_scan(row: Mapping[str, Any], spatial_dims: int, min_size: int) -> Scan:
    """An image with its label map and mask, if it has them.

    Args:
        row: "moving" and perhaps "moving_label" and "moving_mask", see `data.keys`.
        spatial_dims: 2 or 3.
        min_size: fewest voxels along an axis.

    Raises:
        PairError: see `load_pair`; it names the image, label or mask, as the list does.
    """
    names = {name: value for name, value in row.items() if name.startswith("moving")}
    both = {name.replace("moving", "fixed"): value for name, value in names.items()} | names
    try:
        return load_pair(both, spatial_dims, min_size).moving
    except PairError as error:
        message = re.sub(r"^(?:fixed|moving)(?:_(label|mask))?", lambda key: key[1] or "image", str(error))
        raise PairError(message) from error


@dataclass(frozen=True, eq=False)
class Member:
    """An image and the way to it.

    Attributes:
        row: names its files.
        flow: from the template that it was registered to.
        start: affine that comes after the flow, (4, 4) RAS mm, float64.
    """

    row: Mapping[str, Any]
    flow: Flow
    start: Tensor

    def scan(self) -> Scan:
        """The image, read again."""
        return load_scan(self.row, self.flow.grid.spatial_dims, 1)

    def displacement(self, shape: PairMap) -> Tensor:
        """From a template of another shape to where the start comes, (D, *spatial), voxels.

        Args:
            shape: from that template to the one of the flow.
        """
        first = shape.ddf
        axes = [torch.arange(n, dtype=first.dtype, device=first.device) for n in first.shape[1:]]
        there = torch.stack(torch.meshgrid(*axes, indexing="ij")) + first
        return first + self.flow.displacement_of(there.flatten(1).T).view_as(first)
