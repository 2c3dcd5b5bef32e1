# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Mean shapes of affines and of flows, and the way from a template to where its images are on average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import Flow, VelocityField
from monai_nodeo.registration import PairMap

__all__ = ["mean_flow", "mean_stretch", "to_mean_shape"]


def mean_stretch(affines: Sequence[Tensor], centre: Tensor) -> Tensor:
    """The mean of what affines do to a shape: of the logarithms of their stretches, before they turn and shift it.

    Turns and shifts are left out: where a template lies is no matter of its shape, and it shall stay within its grid.

    Args:
        affines: (4, 4) each, float64.
        centre: (3,), the place that stays.
    """
    _, s, v = torch.linalg.svd(torch.stack(list(affines))[:, :3, :3])
    mean = torch.eye(4, dtype=torch.float64)
    mean[:3, :3] = torch.matrix_exp((v.mT @ torch.diag_embed(s.log()) @ v).mean(0))
    mean[:3, 3] = centre - mean[:3, :3] @ centre
    return mean


def mean_flow(flows: Sequence[Flow], grid: ImageGrid) -> Flow:
    """The flow of the mean of velocities, with nodes at the voxels of a grid.

    Args:
        flows: with as many keyframes each.
        grid: of the image that they all start from.
    """
    total: Tensor | None = None
    for flow in flows:
        images = flow.on(grid).velocity.get_parameter("images").data
        total = images if total is None else total + images
    assert total is not None
    return Flow(VelocityField.of(total / len(flows)), flows[0].solver, grid, grid)


def to_mean_shape(flows: Sequence[Flow], affines: Sequence[Tensor], grid: ImageGrid) -> PairMap:
    """From a template of mean shape to the one that the images were registered to.

    Args:
        flows: from the old template towards each image.
        affines: that come after them, (4, 4) RAS mm.
        grid: of both templates.

    Returns:
        The inverse of the mean stretch, then the flow of the mean velocity, backwards. After the new template is taken
        there, its ways to the images have no mean, to first order.
    """
    middle = torch.tensor([*((n - 1) / 2 for n in grid.spatial_shape), 0, 0][:3] + [1.0], dtype=torch.float64)
    stretch = mean_stretch(affines, (torch.from_numpy(grid.affine.copy()) @ middle)[:3])
    nothing = torch.eye(4, dtype=torch.float64)
    return PairMap(mean_flow(flows, grid).inverse, grid, torch.linalg.inv(stretch), nothing)
