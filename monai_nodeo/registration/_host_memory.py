# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Keeps glibc from handing memory back to the system between two uses of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory"]

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DEFAULTS = {_M_TRIM_THRESHOLD: 128 * 1024, _M_TOP_PAD: 128 * 1024, _M_MMAP_MAX: 65536}
_KEEP = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 8 * 2**20, _M_MMAP_MAX: 0}


@contextmanager
def keep_freed_memory() -> Iterator[Callable[[], None]]:
    """Inside, freed arrays are reused instead of unmapped; afterwards all free memory goes back to the system.

    Each iteration allocates the same large arrays. By default each is mapped anew and the kernel clears it page by
    page, which took 40 % of an iteration's time. Does nothing where the C library is not glibc.

    Yields a function that gives back what is free at the moment. Called now and then, it keeps holes between arrays of
    different sizes from adding up.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield lambda: None
        return
    for option, value in _KEEP.items():
        mallopt(option, value)
    try:
        yield lambda: malloc_trim(0)
    finally:
        for option, value in _DEFAULTS.items():
            mallopt(option, value)
        malloc_trim(0)
