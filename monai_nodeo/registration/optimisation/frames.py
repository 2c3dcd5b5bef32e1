# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The frames of a series as the optimisation sees them: on the disk, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.registration.optimisation.levels import Level, PairBatch

__all__ = ["Frames", "write_frame"]

_SEED = 0  # of the order in which the groups are seen


class Frames:
    """The frames of a series, each beside the reference frame.

    They wait in files, so that memory does not grow with their number. Each iteration sees a group; those of a group
    are spread over all times, and in ``cycle`` iterations every frame is seen once.

    Args:
        fixed: the reference frame, a batch of one; what it says of its moving image is not looked at.
        files: of the other frames, see :py:func:`write_frame`.
        times: of the reference frame, then of each other one, in [0, 1].
        drawn: frames that an iteration sees.

    Attributes:
        fixed: the reference frame, (1, C, *spatial).
        landmarks, labels: none.
    """

    landmarks: None = None
    labels: None = None

    def __init__(self, reference: PairBatch, files: Sequence[Path], times: Sequence[float], drawn: int = 4) -> None:
        self.reference = reference
        self.fixed = reference.fixed
        self.files = tuple(files)
        self.times = tuple(times)
        self.drawn = drawn

    @property
    def moving(self) -> Tensor:
        """One of the other frames."""
        return self.pair(0).moving

    @property
    def cycle(self) -> int:
        """Iterations in which all frames are seen."""
        return -(-len(self.files) // self.drawn)

    def __iter__(self) -> Iterator[PairBatch]:
        """Groups without end."""
        order = np.random.default_rng(_SEED)
        by_time = sorted(range(len(self.files)), key=lambda number: self.times[number + 1])
        while True:
            for first in order.permutation(self.cycle).tolist():
                numbers = by_time[first :: self.cycle]
                moving = torch.cat([self.pair(number).moving for number in numbers])
                times = (self.times[0], *[self.times[number + 1] for number in numbers])
                yield replace(self.reference, moving=moving, times=times)

    def pair(self, number: int) -> PairBatch:
        """The reference frame and another one, a batch of one."""
        moving = torch.from_numpy(np.load(self.files[number])).to(self.fixed.device)
        return replace(self.reference, moving=moving)

    def at(self, level: Level) -> Frames:
        """The frames on the grid of a level."""
        return self.mapped(f"level_{level.index}", lambda pair: pair.at(level))

    def mapped(self, name: str, function: Callable[[PairBatch], PairBatch]) -> Frames:
        """What a function makes of each pair, in files in a folder of that name."""
        files = [file.parents[1] / name / file.name for file in self.files]
        for number, file in enumerate(files):
            pair = function(self.pair(number))
            write_frame(file, pair.moving)
        return Frames(pair, files, self.times, self.drawn)


def write_frame(file: Path, image: Tensor) -> None:
    """Write a frame, (1, C, *spatial), to a file of numpy."""
    file.parent.mkdir(exist_ok=True)
    np.save(file, image.cpu().numpy())
