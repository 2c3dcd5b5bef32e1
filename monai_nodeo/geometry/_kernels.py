# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels beside the plain operations: Numba's on the CPU, Triton's on CUDA.

The plain operations are the reference, and what is used where a compiler is absent.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["kernels_for"]

_LIBRARIES = {"cpu": "numba", "cuda": "triton"}

logger = logging.getLogger(__name__)


def kernels_for(x: Tensor, part: str, room: str = "geometry") -> ModuleType | None:
    """The kernels for a tensor.

    Args:
        x: what they are to work on.
        part: of geometry "flow", "folds", "resized_sampling", "sampling", "self_sampling", "separable" or "windows"; of
            losses "intensity", "local_ncc" or "regularity".
        room: folder of the package whose `_numba` and `_triton` hold them.

    Returns:
        the module; None when its compiler is absent or cannot build anything, or for a type that it does not take.
    """
    return _kernels(room, part, x.device.type) if x.dtype in (torch.float32, torch.float64) else None


@lru_cache
def _kernels(room: str, part: str, device: str) -> ModuleType | None:
    library = _LIBRARIES.get(device)
    name = f"monai_nodeo.{room}._{library}.{part}"
    return import_module(name) if library and _usable(library, device) and find_spec(name) else None


@lru_cache
def _usable(library: str, device: str) -> bool:
    if find_spec(library) is None:
        return False
    try:
        import_module(f"monai_nodeo.geometry._{library}.windows").window_sum(torch.ones(8, device=device), [3])
    except Exception as error:  # Triton needs a compiler of C, for instance; whatever it is, the plain operations do
        logger.info("without the kernels of %s, which is slower: %s", library, error)
        return False
    return True
