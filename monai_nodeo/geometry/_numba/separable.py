# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps of an axis whose rows have few entries: kernels and interpolations."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

__all__ = ["Band", "apply", "band_of"]

_WIDEST = 0.25  # of an axis: above, a matrix product is faster, as along the last axis


class Band(NamedTuple):
    """A matrix by what is not 0 in its rows.

    Attributes:
        first: column of the first entry of each row, (rows,).
        entries: (rows, width).
    """

    first: NDArray
    entries: NDArray


def band_of(matrix: Tensor) -> Band | None:
    """The band of a matrix (rows, columns), None when it is not worth it."""
    values = as_array(matrix)
    present = values != 0
    first = present.argmax(1)
    last = values.shape[1] - present[:, ::-1].argmax(1)
    width = int(np.where(present.any(1), last - first, 1).max())
    if width > _WIDEST * values.shape[1]:
        return None
    first = np.minimum(first, values.shape[1] - width)
    return Band(first, np.take_along_axis(values, first[:, None] + np.arange(width), 1))


def apply(x: Tensor, band: Band, axis: int) -> Tensor:
    """Multiply an axis, not the last one, of a tensor by a matrix, (..., columns, ...) -> (..., rows, ...)."""
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    source = as_array(x)
    target = np.empty((*x.shape[:axis], len(band.first), *x.shape[axis + 1 :]), source.dtype)
    blocks = source.reshape(before, -1, after), target.reshape(before, -1, after)
    if before >= 2 * torch.get_num_threads():
        in_threads(_blocks, before, *blocks, *band)
    else:
        for one, other in zip(*blocks, strict=True):
            in_threads(_rows, len(band.first), one, other, *band)
    return torch.from_numpy(target)


@compiled
def _rows(source, target, first, entries, start, stop):  # type: ignore[no-untyped-def]
    """Four entries at a time, so that the target goes through the cache less often."""
    width = entries.shape[1]
    columns = source.shape[1]
    for row in range(start, stop):
        at = first[row]
        for z in range(columns):
            target[row, z] = 0
        for k in range(0, width - 3, 4):
            a, b, c, d = entries[row, k], entries[row, k + 1], entries[row, k + 2], entries[row, k + 3]
            for z in range(columns):
                target[row, z] += (
                    a * source[at + k, z]
                    + b * source[at + k + 1, z]
                    + c * source[at + k + 2, z]
                    + d * source[at + k + 3, z]
                )
        for k in range(width - width % 4, width):
            a = entries[row, k]
            for z in range(columns):
                target[row, z] += a * source[at + k, z]


@compiled
def _blocks(source, target, first, entries, start, stop):  # type: ignore[no-untyped-def]
    for block in range(start, stop):
        _rows(source[block], target[block], first, entries, 0, len(first))
