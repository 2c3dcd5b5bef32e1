# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A dataset of pairs that a bad row does not stop; the lists themselves are read by `pair_lists`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from monai_nodeo.data.lists import ERROR, DataListError, RowError, load_datalist, requested_pairs, single_pair
from monai_nodeo.data.pair import PairError, root_cause

__all__ = [
    "DataListError",
    "FailedRow",
    "PairBatches",
    "PairDataset",
    "RowError",
    "load_datalist",
    "requested_pairs",
    "single_pair",
]

logger = logging.getLogger(__name__)


class FailedRow(NamedTuple):
    """A row that was not registered.

    Args:
        row: its number in the list, from 1.
        id: name of the pair.
        reason: what was wrong and what to do.
    """

    row: int
    id: str
    reason: str


class PairDataset(IterableDataset):
    """Rows through a transform, one after the other; a row that fails is reported and the others go on.

    A failure is logged at once and listed in ``failures``: always the same list object, emptied when an iteration
    starts and complete when it ends. The dataset has no length, because that is not known before: an evaluator takes
    its epoch from the iteration itself. Register a list again with a new evaluator, since the old one keeps that number
    and would stop before failures that follow the last good row.

    Args:
        data: as from `load_datalist`; any dicts whose "error", if there is one, is an exception.
        transform: makes an item of a row; what it raises fails the row.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[[dict[str, Any]], Any]) -> None:
        self.data = data
        self.transform = transform
        self.failures: list[FailedRow] = []

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise RuntimeError("PairDataset lists its failures in the main process; give the loader num_workers=0.")
        self.failures.clear()
        for number, row in enumerate(self.data, start=1):
            named = {"id": f"row_{number}", **row}
            made = []
            try:
                if ERROR in named:
                    raise named[ERROR]
                made.append(self.transform(named))
            except Exception as error:  # whatever is wrong with this pair, the others can be registered
                self._fail(number, named["id"], root_cause(error))
            else:
                yield made.pop()  # not kept here: the loader's batch is a copy of it

    def _fail(self, number: int, id: str, cause: BaseException) -> None:
        expected = isinstance(cause, PairError | RowError)
        reason = str(cause) if expected else f"{type(cause).__name__}: {cause}"
        # The place in the code helps only where the message was not written for the user.
        logger.error("row %d (%s) failed: %s", number, id, reason, exc_info=None if expected else cause)
        self.failures.append(FailedRow(number, id, reason))


class PairBatches(IterableDataset):
    """Items of a dataset in lists, for a loader with ``batch_size=None``: those that follow each other and are alike.

    Alike are items whose tensors have the same keys, shapes and types, so that they can be stacked.

    Args:
        dataset: of dicts.
        batch_size: most items of a list.

    Raises:
        ValueError: when the batch size is below 1.
    """

    def __init__(self, dataset: IterableDataset, batch_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more pairs.")
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        batch: list[Any] = []
        for item in self.dataset:
            if batch and _kind(batch[0]) != _kind(item):
                yield batch
                batch = []
            batch.append(item)
            del item
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _kind(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for key, x in item.items()}
