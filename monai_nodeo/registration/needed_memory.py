# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The memory and the room on the disk that a registration needs, compared with what is free, before the work.

Where the bytes per voxel come from: docs/performance.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_nodeo.data.keys import images_of
from monai_nodeo.data.pair import PairError
from monai_nodeo.files import ImageGrid
from monai_nodeo.registration.settings import Settings

__all__ = ["check_memory", "fitting_settings", "free_memory", "needed_memory", "needed_room", "pairs_at_once"]

_NUMBER = 4  # bytes, float32
_LOADED = 2  # for each channel: both images
_PREPARING = 3  # for each channel: both in one range, and one of them as it was matched
_MATCHED = 2  # for each channel and voxel that is compared: both images on one grid in one range
_COMPARED = 4  # for each channel: window means and variances of the target, the warped image and its gradient
_OF_CLOUD = 19  # vectors at the points of the cloud, and one more for each step of a solver differentiated directly
_FINISHING = 5  # in a voxel, beside images, displacement and velocity: of the figures, or of a file that is written
_LIBRARIES = 800_000_000  # bytes that a process holds for itself, compiled kernels with them
_BYTES_ON_DISK = 20  # per voxel, of the compressed files of a result
_USUAL = 2  # times that is what small images may take
_WIDE = 2  # voxels from point to point
_FEWER = (2, 4, 8)  # times
_SQUARING = "scaling_and_squaring"  # takes as many steps as its powers of two

logger = logging.getLogger(__name__)

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def needed_memory(
    settings: Settings, spatial_shape: Sequence[int], pairs: int = 1, channels: int = 1, compared: int | None = None
) -> int:
    """Bytes that a registration of pairs takes, above what the process holds already.

    For each voxel that is compared the optimisation holds both images, what the similarity needs of the warped and of
    the target image, what the finished flow differs by, and at the points of the cloud some vectors. Later it is the
    displacement of all voxels and what is made of it. This is for the local correlation with compiled kernels; other
    similarities take more.

    Args:
        settings: of the registration.
        spatial_shape: of the fixed grid, D sizes.
        pairs: that are optimised together.
        channels: of an image.
        compared: voxels at which the images are compared, without the air around them; by default as if there was none.
    """
    steps = 0
    if not settings.adjoint:
        steps = settings.num_steps.bit_length() - 1 if settings.solver == _SQUARING else settings.num_steps
    dims = len(spatial_shape)
    dense, finest = bool(settings.dense_iterations), min(settings.shrink_factors)
    points = max(finest, settings.point_spacing) ** -dims
    ways = 2 if settings.symmetric else 1
    voxels = math.prod(spatial_shape)
    largest = _compared(settings, spatial_shape) if compared is None else compared
    optimised = ways * (_COMPARED * channels + dims * dense) * finest**-dims + dims * points * (_OF_CLOUD + steps)
    numbers = max(
        _PREPARING * channels * voxels,
        (_MATCHED * channels + optimised) * largest,
        (channels + 2 * dims + _FINISHING) * voxels + dims * points * largest,
    )
    return round(_NUMBER * (_LOADED * channels * voxels + numbers) * pairs)


def fitting_settings(
    settings: Settings, spatial_shape: Sequence[int], memory: int, channels: int = 1
) -> tuple[Settings, str]:
    """The first of ever leaner settings with which a process stays within so much memory.

    Args:
        settings: that are wanted.
        spatial_shape: of the grid, D sizes, the air around the images counted.
        memory: bytes, of the whole process.
        channels: of an image.

    Returns:
        the settings, and what was changed and what it costs, empty: nothing.

    Raises:
        PairError: tells what the leanest ones need.
    """
    for changed, costs in _leaner(settings, spatial_shape):
        needed = _LIBRARIES + needed_memory(changed, spatial_shape, 1, channels)
        if needed <= memory:
            return changed, "; ".join(costs)
    raise PairError(
        f"{'x'.join(map(str, spatial_shape))} voxels take {needed / 1e9:.3g} GB of memory with the leanest settings, "
        f"and {memory / 1e9:.3g} GB are allowed; allow more, crop the images, or resample them."
    )


def _leaner(settings: Settings, spatial_shape: Sequence[int]) -> Iterator[tuple[Settings, list[str]]]:
    """The settings, and ever leaner ones, and what each costs; see docs/performance.md."""
    costs: list[str] = []
    yield settings, costs
    if settings.point_spacing < _WIDE:
        costs = [*costs, f"points {_WIDE} voxels apart, not {settings.point_spacing:g} (Dice -.003)"]
        settings = settings.replace(point_spacing=_WIDE)
        yield settings, costs
    if settings.dense_iterations:
        costs = [*costs, "no iterations at every voxel at the end (Dice -.005)"]
        settings = settings.replace(dense_iterations=0)
        yield settings, costs
    for times in _FEWER:
        fewer = _compared(settings, spatial_shape) // times
        yield settings.replace(max_voxels=fewer), [*costs, f"images compared at {times} times fewer voxels"]


def _compared(settings: Settings, spatial_shape: Sequence[int]) -> int:
    """Voxels at which the images of a grid are compared, with the air around them."""
    voxels = math.prod(spatial_shape)
    return voxels if settings.max_voxels is None else min(voxels, settings.max_voxels)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say.

    On the host it is what the system, every control group of this process and its address space (``ulimit -v``) leave,
    files in the cache not counted.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(_free_on_host(), default=None) if device.type == "cpu" else None


def check_memory(
    settings: Settings,
    spatial_shape: Sequence[int],
    pairs: int,
    device: torch.device,
    channels: int = 1,
    compared: int | None = None,
) -> None:
    """Refuse what cannot fit, and warn of what may not; see :py:func:`needed_memory`.

    Raises:
        PairError: tells what is needed, what is free, and what to do.
    """
    needed, free = needed_memory(settings, spatial_shape, pairs, channels, compared), free_memory(device)
    if free is None or _USUAL * needed <= free:
        return
    what = f"{'x'.join(map(str, spatial_shape))} voxels"
    what = f"{pairs} pairs of {what}" if pairs > 1 else what
    fewer = "a smaller batch, " if pairs > 1 else ""
    text = (
        f"{what} take {needed / 1e9:.3g} to {_USUAL * needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free "
        f"on {device}; take {fewer}a smaller max_voxels, crop the images, or resample them."
    )
    if needed > free:
        raise PairError(text)
    logger.warning("this may end for want of memory: %s", text)


def pairs_at_once(settings: Settings, spatial_shape: Sequence[int], device: torch.device) -> int:
    """How many pairs of a size can be optimised together with memory to spare, at least 1."""
    free = free_memory(device)
    return 2**10 if free is None else max(1, free // (_USUAL * needed_memory(settings, spatial_shape)))


def needed_room(rows: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that the results of pairs take at least, if all are of the size of the first one that can be read.

    Args:
        rows: with the path of a "fixed" image each.
    """
    for row in rows:
        try:
            return _BYTES_ON_DISK * math.prod(ImageGrid.from_file(images_of(row["fixed"])[0]).shape) * len(rows)
        except (KeyError, OSError, ValueError, IndexError):
            continue  # what is wrong with it is told when it is registered
    return 0


def _free_on_host() -> Iterator[int]:
    for line in _text(_PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    used_space = next((x for x in _text(_PROC / "self/status").splitlines() if x.startswith("VmSize:")), None)
    for line in _text(_PROC / "self/limits").splitlines():
        if used_space and line.startswith("Max address space") and (limit := line.split()[3]).isdigit():
            yield max(0, int(limit) - int(used_space.split()[1]) * 1024)
    for line in _text(_PROC / "self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            names, mount = ("memory.max", "memory.current", "inactive_file"), _CGROUP
        elif controllers == "memory":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = _CGROUP / "memory"
        else:
            continue
        # a container sees its own group as the root, a process of the host those above it too
        folder = mount / place.strip("/")
        for group in {mount, folder, *(p for p in folder.parents if mount in p.parents)}:
            limit, used = (_text(group / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit():
                stat = dict(row.split() for row in _text(group / "memory.stat").splitlines())
                yield max(0, int(limit) - int(used) + int(stat.get(names[2], 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
