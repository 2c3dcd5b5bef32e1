# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Vectors at the corners of the cells of a grid: each instruction works on all parts of a vector.

Numba writes no such instructions by itself. So the vectors of a field lie together in memory, padded to four numbers,
and what is done at the eight corners of a cell is written in the language of LLVM, in single and double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from monai_nodeo.geometry._numba._threads import compiled, in_threads

__all__ = ["LANES", "add_to_corners", "interpolate", "pack", "packed", "slopes_times"]

LANES = 4  # numbers of a padded vector
_FAST = ("contract", "nsz", "arcp", "reassoc")  # as other kernels are compiled
_INDEX = types.uint64
_written: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic


def packed(field: NDArray) -> NDArray:
    """The vectors of a field (3, X, Y, Z), each padded to four numbers, (X, Y, Z, 4)."""
    found: NDArray = np.empty((*field.shape[1:], LANES), field.dtype)
    in_threads(pack, field.shape[1], field, found)
    return found


@compiled
def pack(field, found, start, stop):  # type: ignore[no-untyped-def]
    """The vectors of a field of 2 or 3 components, (D, X, Y, Z), padded; the last ones are those of the last axes."""
    missing = 3 - len(field)
    for x in range(start, stop):
        for y in range(field.shape[2]):
            for z in range(field.shape[3]):
                for axis in range(LANES):
                    there = missing <= axis < 3
                    found[x, y, z, axis] = field[axis - missing, x, y, z] if there else 0


class _Vectors:
    """Writes instructions that work on padded vectors of a flat array."""

    def __init__(self, context: Any, builder: Any, array: Any, value: Any) -> None:
        self.builder = builder
        self.kind = ir.VectorType(context.get_value_type(array.dtype), LANES)
        self.data = context.make_array(array)(context, builder, value).data
        self.bytes = array.dtype.bitwidth // 8  # all that NumPy promises of where an array lies

    def _place(self, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.data, [at]), self.kind.as_pointer())

    def load(self, at: Any) -> Any:
        return self.builder.load(self._place(at), align=self.bytes)

    def store(self, vector: Any, at: Any) -> None:
        self.builder.store(vector, self._place(at), align=self.bytes)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=_FAST)

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=_FAST)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=_FAST)

    def mix(self, a: Any, b: Any, way: Any) -> Any:
        """``a`` and ``b``, linear in between."""
        return self.add(a, self.multiply(self.subtract(b, a), way))

    def vector(self, parts: Sequence[Any]) -> Any:
        """Of three numbers."""
        found = ir.Constant(self.kind, [0.0] * LANES)
        for place, part in enumerate(parts):
            found = self.builder.insert_element(found, part, _number(place))
        return found

    def everywhere(self, number: Any) -> Any:
        nothing = ir.Constant(self.kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, _number(0))
        return self.builder.shuffle_vector(
            first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )

    def parts(self, vector: Any) -> list[Any]:
        """The three numbers of a vector."""
        return [self.builder.extract_element(vector, _number(place)) for place in range(3)]

    def total(self, vector: Any) -> Any:
        x, y, z = self.parts(vector)
        return self.add(self.add(x, y), z)

    def corners(self, at: Any, steps: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Places of the corners of a cell: those before along z, in the order of x and then y, and those behind."""
        x, y, z = steps
        lines = [at, self.builder.add(at, y), self.builder.add(at, x), self.builder.add(self.builder.add(at, x), y)]
        return lines, [self.builder.add(line, z) for line in lines]


def _number(place: int) -> Any:
    return ir.Constant(ir.IntType(32), place)


def _instructions(array: Any, numbers: int, returned: Any, write: Callable[..., Sequence[Any] | None]) -> Any:
    """What an intrinsic gives to Numba: its types, and what writes it.

    Args:
        array: flat, of padded vectors.
        numbers: that follow the array, the place of the cell's first number and the steps along the axes.
        returned: type.
        write: called with vectors, place, steps and numbers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, array, arguments[0])
        found = write(vectors, arguments[1], arguments[2:5], *arguments[5:])
        return context.get_dummy_value() if found is None else context.make_tuple(builder, returned, found)

    return returned(array, *[_INDEX] * 4, *[array.dtype] * numbers), generate


@_written
def interpolate(_: Any, array: Any, at: Any, x: Any, y: Any, z: Any, f: Any, g: Any, h: Any) -> Any:
    """The vector at a place in a cell, linear between its corners: three numbers.

    Args:
        array: a padded field, flat.
        at: place of the first number of the cell.
        x: step along the first axis, see :py:func:`monai_nodeo.geometry._numba.cells.steps_of`.
        y: along the second one.
        z: along the third one.
        f: way from the first corner along the first axis, voxels.
        g: along the second one.
        h: along the third one.
    """

    def write(vectors: _Vectors, at: Any, steps: Any, *ways: Any) -> Any:
        f, g, h = map(vectors.everywhere, ways)
        before, behind = vectors.corners(at, steps)
        a, b, c, d = (vectors.mix(vectors.load(i), vectors.load(j), h) for i, j in zip(before, behind, strict=True))
        return vectors.parts(vectors.mix(vectors.mix(a, b, g), vectors.mix(c, d, g), f))

    return _instructions(array, 3, types.UniTuple(array.dtype, 3), write)


@_written
def slopes_times(
    _: Any, array: Any, at: Any, x: Any, y: Any, z: Any, f: Any, g: Any, h: Any, p: Any, q: Any, r: Any
) -> Any:
    """The derivatives of :py:func:`interpolate` by the way along each axis, times a vector (p, q, r): three numbers."""

    def write(vectors: _Vectors, at: Any, steps: Any, *numbers: Any) -> Any:
        f, g, h = map(vectors.everywhere, numbers[:3])
        before, behind = vectors.corners(at, steps)
        lines = [vectors.load(i) for i in before]
        by_z = [vectors.subtract(vectors.load(j), line) for j, line in zip(behind, lines, strict=True)]
        a, b, c, d = (vectors.add(line, vectors.multiply(slope, h)) for line, slope in zip(lines, by_z, strict=True))
        by_y = vectors.subtract(b, a), vectors.subtract(d, c)
        by_x = vectors.subtract(vectors.mix(c, d, g), vectors.mix(a, b, g))
        along_y = vectors.mix(by_y[0], by_y[1], f)
        along_z = vectors.mix(vectors.mix(by_z[0], by_z[1], g), vectors.mix(by_z[2], by_z[3], g), f)
        other = vectors.vector(numbers[3:])
        return [vectors.total(vectors.multiply(slope, other)) for slope in (by_x, along_y, along_z)]

    return _instructions(array, 6, types.UniTuple(array.dtype, 3), write)


@_written
def add_to_corners(
    _: Any, array: Any, at: Any, x: Any, y: Any, z: Any, f: Any, g: Any, h: Any, p: Any, q: Any, r: Any
) -> Any:
    """Add a vector (p, q, r) to the corners of a cell, in the shares that :py:func:`interpolate` takes from them."""

    def write(vectors: _Vectors, at: Any, steps: Any, *numbers: Any) -> None:
        def split(vector: Any, way: Any) -> tuple[Any, Any]:
            behind = vectors.multiply(vector, way)
            return vectors.subtract(vector, behind), behind

        f, g, h = map(vectors.everywhere, numbers[:3])
        planes = split(vectors.vector(numbers[3:]), f)
        lines = [line for plane in planes for line in split(plane, g)]
        for line, before, behind in zip(lines, *vectors.corners(at, steps), strict=True):
            for share, corner in zip(split(line, h), (before, behind), strict=True):
                vectors.store(vectors.add(vectors.load(corner), share), corner)

    return _instructions(array, 6, types.none, write)
