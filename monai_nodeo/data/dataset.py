# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A dataset of pairs that a bad row does not stop; the lists themselves are read by `lists`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from monai_nodeo.data.lists import ERROR, RowError
from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import Pair, PairError

__all__ = ["FailedRow", "PairDataset"]

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
    """The pairs of a list, loaded one after the other; a row that fails is reported and the others go on.

    A failure is logged at once and listed in ``failures``: always the same list object, emptied when an iteration
    starts and complete when it ends. The dataset has no length, because that is not known before: an evaluator takes
    its epoch from the iteration itself. Register a list again with a new evaluator, since the old one keeps that number
    and would stop before failures that follow the last good row.

    Args:
        data: as from `load_datalist`; any dicts whose "error", if there is one, is an exception.
        transform: makes a pair of a row; what it raises fails the row.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[dict[str, Any]], Pair] = load_pair
    ) -> None:
        self.data = data
        self.transform = transform
        self.failures: list[FailedRow] = []

    def __iter__(self) -> Iterator[Pair]:
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
                self._fail(number, named["id"], error)
            else:
                yield made.pop()  # not kept here

    def fail(self, id: str, cause: BaseException) -> None:
        """Report a pair that was loaded and cannot be registered."""
        ids = [row.get("id", f"row_{number}") for number, row in enumerate(self.data, start=1)]
        self._fail(ids.index(id) + 1, id, cause)

    def _fail(self, number: int, id: str, cause: BaseException) -> None:
        expected = isinstance(cause, PairError | RowError)
        reason = str(cause) if expected else f"{type(cause).__name__}: {cause}"
        # The place in the code helps only where the message was not written for the user.
        logger.error("row %d (%s) failed: %s", number, id, reason, exc_info=None if expected else cause)
        self.failures.append(FailedRow(number, id, reason))
