# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether malloc of glibc hands memory back to the system between two uses of it: not at all, or at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["give_back_kept_memory", "give_freed_memory_back", "keep_freed_memory"]

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_DEFAULTS = {_M_TRIM_THRESHOLD: 128 * 1024, _M_TOP_PAD: 128 * 1024, _M_MMAP_MAX: 65536}
_KEEP = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 8 * 2**20, _M_MMAP_MAX: 0}

_LARGE = 2**20  # bytes

_trims: list[Callable[[], None]] = []  # of the contexts that this process is in


def give_back_kept_memory() -> None:
    """Inside `keep_freed_memory`, give back what is free at the moment; elsewhere nothing.

    Called now and then, it keeps holes between arrays of different sizes from adding up.
    """
    if _trims:
        _trims[-1]()


@contextmanager
def keep_freed_memory() -> Iterator[Callable[[], None]]:
    """Inside, freed arrays are reused instead of unmapped; afterwards all free memory goes back to the system.

    This is a setting of the whole process, so that it is for commands, never for a call of the library.

    Each iteration allocates the same large arrays. By default each is mapped anew and the kernel clears it page by
    page, which took 40 % of an iteration's time. Does nothing where the C library is not glibc.

    Yields what `give_back_kept_memory` calls.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield lambda: None
        return
    for option, value in _KEEP.items():
        mallopt(option, value)
    _trims.append(lambda: malloc_trim(0))
    try:
        yield _trims[-1]
    finally:
        _trims.pop()
        for option, value in ({} if _trims else _DEFAULTS).items():  # the outer one goes on
            mallopt(option, value)
        malloc_trim(0)


@contextmanager
def give_freed_memory_back() -> Iterator[None]:
    """Inside, a large array goes back to the system when it is freed, so that a process takes what it holds.

    For commands that have to stay within a limit. Other arrays leave no holes between which memory is kept, and each
    large one is mapped and cleared anew, which takes time. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _DEFAULTS[_M_TRIM_THRESHOLD])  # the same number in glibc
