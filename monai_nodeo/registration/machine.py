# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The machine that registers: a device that can be used, its name, and the most memory that was taken."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

__all__ = ["device_name", "peak_memory_mb", "usable_device"]


def usable_device(device: torch.device | str | None) -> torch.device:
    """A device that there is, found out before the work; by default a GPU if there is one.

    Raises:
        ValueError: when it cannot be used.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"device {str(wanted)!r} cannot be used here ({reason}); give cpu, or another.") from error


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far: allocated on a CUDA device for this pair, else resident of the whole process.

    0 on Windows, which does not say.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(_peak_of_process() / 1e6, 1)


def _peak_of_process() -> int:
    """Bytes. Not by getrusage on Linux, which begins with the memory of the process that started this one."""
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Name of a CUDA device, or the number of threads of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
