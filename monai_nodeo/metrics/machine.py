# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the machine that registered a pair."""

from __future__ import annotations

import sys

import torch

__all__ = ["device_name", "peak_memory_mb"]


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far: allocated on a CUDA device for this pair, else resident of the whole process.

    0 on Windows, which does not say.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def device_name(device: torch.device) -> str:
    """Name of a CUDA device, or the number of threads of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
