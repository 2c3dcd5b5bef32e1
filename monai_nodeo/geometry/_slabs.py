# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Work on a large field a part at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

__all__ = ["slabs"]

# Voxels worked on at a time on a CPU: the intermediate results stay in its cache.
SLAB_VOXELS = 2**18


def slabs(field: Tensor, voxels: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of the first spatial axis that a loss works through at a time.

    On a CPU they are small enough for the intermediate results to stay in its cache: one pass over the memory
    instead of one per operation. On an accelerator there is one slab, so few kernels.

    Args:
        field: (B, C, *spatial).
        voxels: most in a slab of more than one plane; by default as many as stay in the cache.
    """
    planes, most = field.shape[2], voxels or SLAB_VOXELS
    step = max(1, most // (len(field) * math.prod(field.shape[3:]))) if field.device.type == "cpu" else planes
    for start in range(0, planes, step):
        yield start, min(start + step, planes)
