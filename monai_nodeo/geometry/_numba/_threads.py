# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How kernels are compiled, and run by as many threads as torch has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_array", "compiled", "in_threads"]

_PARTS_A_THREAD = 2  # parts take different times

# Not all of "fast mathematics": a NaN has to stay one. Python's lock is released, so that threads run side by side.
compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(
    numba.njit, nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp", "reassoc"}
)()


def as_array(x: Tensor) -> NDArray:
    """The tensor as a contiguous array; it is not copied if it is contiguous."""
    array: NDArray = x.detach().contiguous().as_subclass(Tensor).numpy()
    return array


def in_threads(kernel: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Run ``kernel(*arguments, start, stop)`` on all of 0 to ``count``, in parts that share nothing.

    A kernel writes sums of its own for each number, so that results do not depend on the threads.
    """
    threads = torch.get_num_threads()
    parts = min(count, threads * _PARTS_A_THREAD)
    if threads == 1 or parts < 2:
        kernel(*arguments, 0, count)
        return
    ends = np.linspace(0, count, parts + 1).astype(int).tolist()
    list(_pool(threads).map(lambda i: kernel(*arguments, ends[i], ends[i + 1]), range(parts)))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="monai_nodeo")
