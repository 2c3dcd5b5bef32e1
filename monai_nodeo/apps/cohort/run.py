# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A run over a cohort: what is not done yet goes to an engine, then the tables are written.

Workers that die: `workers` sends their pairs out again, `job` gives a pair up after too many deaths, and `ledger`
counts them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from monai_nodeo.apps.cohort.job import Job, register_pairs
from monai_nodeo.apps.cohort.ledger import FAILED
from monai_nodeo.apps.cohort.storage import storage_errors
from monai_nodeo.apps.cohort.summary import write_tables
from monai_nodeo.files import check_room

__all__ = ["Engine", "InThisProcess", "run_cohort"]

Rows = Sequence[Mapping[str, Any]]
Engine = Callable[[Job, Sequence[Rows]], Iterator[dict[str, Any]]]  # the rows in batches

_LOG_EVERY = 10.0  # seconds, where the output is no terminal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InThisProcess:
    """The simplest engine: one batch after the other, here.

    Args:
        threads: to compute with, None: as many as torch takes.
    """

    threads: int | None = None

    def __call__(self, job: Job, batches: Sequence[Rows]) -> Iterator[dict[str, Any]]:
        job = replace(job, threads=self.threads)
        return (result for batch in batches for result in register_pairs(job, batch))


def run_cohort(job: Job, rows: Rows, mine: Rows, engine: Engine, batch_size: int = 1) -> dict[str, Any]:
    """Run the pairs that are not done, or not from these files, or not with these settings; then write the tables.

    Args:
        job: of the run.
        rows: of the whole cohort, which the tables are about.
        mine: those that this process is to run.
        engine: registers pairs and yields their results in any order.
        batch_size: pairs that are given to a worker at once, which registers together those that are alike.

    Returns:
        The summary, see `write_tables`.

    Raises:
        StorageError: when the results cannot be written.
        ValueError: when the settings name something that there is not.
    """
    ledger = job.ledger
    todo = [row for row in mine if ledger.finished(row) is None]
    if len(todo) < len(mine):
        logger.info("%d of %d pairs are done and unchanged", len(mine) - len(todo), len(mine))
    if not todo:
        return write_tables(ledger, rows)
    job.check()
    from monai_nodeo.registration.needed_memory import needed_room  # torch is of no use where all is done

    with storage_errors(ledger.folder):
        check_room(ledger.folder, needed_room(todo))
    try:
        _watch(engine(job, _batches(todo, batch_size)), len(todo))
    except KeyboardInterrupt:
        write_tables(ledger, rows)
        raise
    summary = write_tables(ledger, rows)
    if job.report:
        from monai_nodeo.report import write_index

        with storage_errors(ledger.folder):
            write_index(ledger.folder)
    return summary


def _batches(rows: Rows, size: int) -> list[Rows]:
    """The rows as they are given to workers."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _watch(results: Iterator[Mapping[str, Any]], count: int) -> None:
    """Go through the results as they come, and tell about it: by a bar, elsewhere by a line now and then."""
    failed, told = 0, time.monotonic()
    with tqdm(total=count, unit="pair", disable=None) as bar:
        for number, result in enumerate(results, start=1):
            if result["status"] == FAILED:
                failed += 1
                logger.error("%s failed: %s", result["id"], result["reason"])
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            if bar.disable and time.monotonic() - told >= _LOG_EVERY:
                told = time.monotonic()
                logger.info("%d of %d pairs, %d failed", number, count, failed)
