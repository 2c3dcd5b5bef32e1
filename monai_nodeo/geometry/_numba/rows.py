# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What kernels do with rows of numbers, written out: an assignment of slices takes Numba seconds to build."""

from __future__ import annotations

from monai_nodeo.geometry._numba._threads import compiled

__all__ = ["add_row", "clear_row", "copy_row", "copy_rows", "subtract_row"]


@compiled
def add_row(row, target):  # type: ignore[no-untyped-def]
    for z in range(len(row)):
        target[z] += row[z]


@compiled
def subtract_row(row, target):  # type: ignore[no-untyped-def]
    for z in range(len(row)):
        target[z] -= row[z]


@compiled
def copy_row(row, target):  # type: ignore[no-untyped-def]
    for z in range(len(row)):
        target[z] = row[z]


@compiled
def clear_row(row):  # type: ignore[no-untyped-def]
    for z in range(len(row)):
        row[z] = 0


@compiled
def copy_rows(source, target):  # type: ignore[no-untyped-def]
    for y in range(source.shape[0]):
        for z in range(source.shape[1]):
            target[y, z] = source[y, z]
