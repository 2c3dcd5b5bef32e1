# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The mean shape of a series: each of its points lies at the mean of its places in the frames."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_nodeo.flows import Flow
from monai_nodeo.flows.field_inversion import invert

__all__ = ["from_mean_shape"]


def from_mean_shape(flow: Flow, begin: float, times: Sequence[float]) -> Tensor:
    """The way from the mean shape to where its points are at one time.

    The way of a point through the frames has a mean whatever time it is followed from, so that the mean shape does not
    depend on that time.

    Args:
        flow: of the series.
        begin: the time of the arrival.
        times: of all frames, which count alike.

    Returns:
        ddf, (D, *spatial), voxels of the grid of the flow, tensor axis order.
    """
    total = flow.displacement(None, begin, times[0])
    for t in times[1:]:
        total += flow.displacement(None, begin, t)
    return invert(total / len(times)).ddf
