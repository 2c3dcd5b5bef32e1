# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A step of an optimisation as a CUDA graph: recorded once, then replayed as a whole instead of kernel by kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["RecordedStep"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The first step has no gradient and the second one makes the optimiser's state, which must not be made at each replay.
_WARM_UPS = 2

_recording = Lock()  # a stream records one thing at a time


class RecordedStep(Generic[Result]):
    """Does a step again and again: the first times as it is, then it is recorded and replayed.

    A step is some hundred kernels, most of which take the device less time than the host needs to start them. It has
    to do the same with the same tensors each time; its result is the same tensors each time, with new values. It is
    recorded anew when an option of the optimiser has changed, as by a schedule of the learning rate. A step that cannot
    be recorded, because it waits for the device or sends something to it, is done as it is.

    Args:
        step: does the step of the optimiser, too.
        optimizer: from now on keeps the number of its steps on the device.

    Attributes:
        recordable: whether the step could be recorded, as far as this is known.
    """

    def __init__(self, step: Callable[[], Result], optimizer: Optimizer) -> None:
        self._step = step
        self._optimizer = optimizer
        self._options: list[Any] = []
        self._warm_ups = _WARM_UPS
        self._recorded: tuple[torch.cuda.CUDAGraph, Result] | None = None
        self.recordable = all("capturable" in group for group in optimizer.param_groups)
        if self.recordable:
            for group in optimizer.param_groups:
                group["capturable"] = True

    def __call__(self) -> Result:
        options = _options(self._optimizer)
        if not self.recordable or self._warm_ups or options != self._options:
            self._recorded = None
            self._options = options
            self._warm_ups = max(0, self._warm_ups - 1)
            return self._step()
        self._recorded = self._recorded or self._record()
        if self._recorded is None:
            return self._step()
        graph, result = self._recorded
        graph.replay()
        return result

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Result] | None:
        graph = torch.cuda.CUDAGraph()
        device = self._optimizer.param_groups[0]["params"][0].device
        try:
            with (
                _recording,
                torch.cuda.stream(torch.cuda.current_stream(device)),  # torch does not go back to it after an error
                # other threads may go on using the device
                torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"),
            ):
                result = self._step()
        except RuntimeError as error:
            self.recordable = False
            logger.info("without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
            return None
        return graph, result


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: matrix products keep some memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


def _options(optimizer: Optimizer) -> list[Any]:
    """What a recorded step holds as numbers; values in tensors are read anew each time."""
    return [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
