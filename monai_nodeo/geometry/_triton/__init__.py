# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for CUDA: what the modules of the same names do by plain operations, in few passes through memory.

The plain operations are the reference, and what is used without Triton, which comes with torch for CUDA on Linux.
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

logger = logging.getLogger(__name__)


def kernels_for(x: Tensor, part: str) -> ModuleType | None:
    """The kernels for a tensor.

    Args:
        x: what they are to work on.
        part: name of a module of this package.

    Returns:
        the module; None for tensors that are not on CUDA, or when Triton is absent or cannot build anything.
    """
    return _kernels(part, x.device) if x.is_cuda else None


@lru_cache
def _kernels(part: str, device: torch.device) -> ModuleType | None:
    if not _usable(device):
        return None
    return import_module(f"{__name__}.{part}")


@lru_cache
def _usable(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    try:
        import_module(f"{__name__}.windows").window_sum(torch.ones(8, device=device), [3])
    except Exception as error:  # Triton needs a compiler of C, for instance; whatever it is, the plain operations do
        logger.info("without Triton kernels, which is slower: %s", error)
        return False
    return True
