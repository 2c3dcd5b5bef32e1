# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Threads that add to the same voxels: each part of a cloud has planes of its own, which are added in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_nodeo.geometry._numba._threads import compiled, in_threads
from monai_nodeo.geometry._numba.vectors import LANES

__all__ = ["Parts", "clear_planes"]

_MOST = 8


class Parts(NamedTuple):
    """Parts of a cloud, the same ones however many threads there are.

    Attributes:
        ends: of the parts: the i-th goes from the i-th end to the next one.
        spans: first plane and the one behind the last plane that each part adds to, (parts, 2); to be filled.
    """

    ends: NDArray
    spans: NDArray

    @classmethod
    def of(cls, count: int, most: int = _MOST) -> Parts:
        """So many points, or planes of them, in equal parts."""
        parts = min(most, _MOST)
        return cls(np.linspace(0, count, parts + 1).astype(int), np.empty((parts, 2), np.int64))

    def room(self, plane: Sequence[int], kind: Any) -> tuple[NDArray, NDArray]:
        """Planes of padded vectors, to be cleared, and which one is the first of each part."""
        firsts = np.cumsum([0, *(self.spans[:, 1] - self.spans[:, 0])])
        return np.empty((firsts[-1], *plane, LANES), kind), firsts

    def add(self, own: tuple[NDArray, NDArray], target: NDArray) -> None:
        """Add the planes to a field of up to three components, (C, X, Y, Z)."""
        in_threads(_add_own, target.shape[1], *own, self.spans, target)


@compiled
def clear_planes(own, firsts, part):  # type: ignore[no-untyped-def]
    """Those of a part: by its own thread, as clearing takes as long as adding does."""
    flat = own[firsts[part] : firsts[part + 1]].reshape(-1)
    for n in range(len(flat)):
        flat[n] = 0


@compiled
def _add_own(own, firsts, spans, target, start, stop):  # type: ignore[no-untyped-def]
    channels = len(target)
    for x in range(start, stop):
        for part in range(len(spans)):
            if not spans[part, 0] <= x < spans[part, 1]:
                continue
            plane = own[firsts[part] + x - spans[part, 0]]
            for y in range(target.shape[2]):
                for z in range(target.shape[3]):
                    for channel in range(channels):
                        target[channel, x, y, z] += plane[y, z, channel]
