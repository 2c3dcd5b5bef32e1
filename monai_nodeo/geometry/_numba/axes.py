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

_WIDEST = 0.25  # of an axis: above, a matrix product is faster


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
    """Multiply an axis of a tensor by a matrix, (..., columns, ...) -> (..., rows, ...)."""
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    source = as_array(x)
    target = np.empty((*x.shape[:axis], len(band.first), *x.shape[axis + 1 :]), source.dtype)
    if after == 1:
        arguments = (source.reshape(before, -1), target.reshape(before, -1), *band)
        in_threads(_last_axis, before, *arguments)
    elif before >= 2 * torch.get_num_threads():
        in_threads(_blocks, before, source.reshape(before, -1, after), target.reshape(before, -1, after), *band)
    else:
        for one, other in zip(source.reshape(before, -1, after), target.reshape(before, -1, after), strict=True):
            in_threads(_rows, len(band.first), one, other, *band)
    return torch.from_numpy(target)


@compiled
def _rows(source: NDArray, target: NDArray, first: NDArray, entries: NDArray, start: int, stop: int):  # type: ignore[no-untyped-def]
    for row in range(start, stop):
        for z in range(source.shape[1]):
            target[row, z] = entries[row, 0] * source[first[row], z]
        for k in range(1, entries.shape[1]):
            for z in range(source.shape[1]):
                target[row, z] += entries[row, k] * source[first[row] + k, z]


@compiled
def _blocks(source: NDArray, target: NDArray, first: NDArray, entries: NDArray, start: int, stop: int):  # type: ignore[no-untyped-def]
    for block in range(start, stop):
        _rows(source[block], target[block], first, entries, 0, len(first))


@compiled
def _last_axis(source: NDArray, target: NDArray, first: NDArray, entries: NDArray, start: int, stop: int):  # type: ignore[no-untyped-def]
    for line in range(start, stop):
        for row in range(len(first)):
            total = entries[row, 0] * source[line, first[row]]
            for k in range(1, entries.shape[1]):
                total += entries[row, k] * source[line, first[row] + k]
            target[line, row] = total
