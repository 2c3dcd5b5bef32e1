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

    Without a reference frame each frame in turn is the fixed image of a group of the others, so that none of them is
    preferred; a cycle then has an iteration for each frame.

    Args:
        fixed: the reference frame, a batch of one; what it says of its moving image is not looked at.
        files: of the other frames, see :py:func:`write_frame`.
        times: of the reference frame, then of each other one, in [0, 1].
        drawn: frames that an iteration sees.
        in_turn: each frame is the fixed image in turn.

    Attributes:
        fixed: the reference frame, (1, C, *spatial).
        landmarks, labels: none.
    """

    landmarks: None = None
    labels: None = None

    def __init__(
        self,
        reference: PairBatch,
        files: Sequence[Path],
        times: Sequence[float],
        drawn: int = 4,
        in_turn: bool = False,
    ) -> None:
        self.reference = reference
        self.fixed = reference.fixed
        self.files = tuple(files)
        self.times = tuple(times)
        self.drawn = drawn
        self.in_turn = in_turn

    @property
    def moving(self) -> Tensor:
        """One of the other frames."""
        return self.pair(0).moving

    @property
    def cycle(self) -> int:
        """Iterations in which all frames are seen."""
        return len(self._groups())

    def __iter__(self) -> Iterator[PairBatch]:
        """Groups without end."""
        order, groups = np.random.default_rng(_SEED), self._groups()
        while True:
            for place in order.permutation(len(groups)).tolist():
                fixed, *moving = groups[place]
                yield replace(
                    self.reference,
                    fixed=self._image(fixed),
                    moving=torch.cat([self._image(number) for number in moving]),
                    times=tuple(self.times[number] for number in groups[place]),
                )

    def _groups(self) -> list[list[int]]:
        """Which frames an iteration sees, the fixed one first; 0 is the reference frame.

        They are the same in each cycle, so that the losses of two cycles can be compared.
        """
        by_time = sorted(range(len(self.times)), key=lambda number: self.times[number])
        apart = -(-len(self.files) // self.drawn)
        if self.in_turn:
            fixed = [(number, place % apart) for place, number in enumerate(by_time)]
        else:
            fixed = [(0, first) for first in range(apart)]
        return [[number, *[n for n in by_time if n != number][first::apart]] for number, first in fixed]

    def _image(self, number: int) -> Tensor:
        return self.pair(number - 1).moving if number else self.fixed

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
        return Frames(pair, files, self.times, self.drawn, self.in_turn)


def write_frame(file: Path, image: Tensor) -> None:
    """Write a frame, (1, C, *spatial), to a file of numpy."""
    file.parent.mkdir(exist_ok=True)
    np.save(file, image.cpu().numpy())
