# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker does for some pairs. It may be called any number of times, on any machine: a finished pair stays."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai_nodeo
from monai_nodeo.cohort.inputs import fingerprints
from monai_nodeo.cohort.ledger import DONE, FAILED, Attempts, Ledger
from monai_nodeo.cohort.storage import blamed_on_storage, storage_errors
from monai_nodeo.data.lists import ERROR

__all__ = ["MOST_DEATHS", "Job", "register_pairs"]

MOST_DEATHS = 3  # of its workers, after which a pair is not tried again in this run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the pairs of a run have in common.

    Attributes:
        folder: of the results, absolute.
        config: resolved config of the bundle.
        config_key: of the parts that results depend on.
        run: name of this run of the command.
        threads: of a worker, None: as many as it has.
        version: of this package, which the workers have to have, too.
    """

    folder: str
    config: Mapping[str, Any]
    config_key: str
    run: str
    threads: int | None = None
    version: str = monai_nodeo.__version__

    @property
    def ledger(self) -> Ledger:
        """Where the results are recorded."""
        return Ledger(Path(self.folder), self.config_key)


def register_pairs(job: Job, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Register pairs, together as far as that can be, unless they are done, and record what came out.

    Args:
        job: of the run.
        rows: paths and id, or id and error.

    Returns:
        The recorded result of each: "id", "status", "reason" of a failure, "row" of the table.

    Raises:
        StorageError: when the results cannot be written; a pair at fault is a recorded failure instead.
        ValueError: when this worker has another version of the package.
    """
    if job.version != monai_nodeo.__version__:
        raise ValueError(
            f"a worker has monai_nodeo {monai_nodeo.__version__}, the command {job.version}; install the same on both."
        )
    ledger = job.ledger
    with storage_errors(ledger.folder), ExitStack() as claims:
        # in one order by all processes, so that no two wait for each other
        attempts = {id: claims.enter_context(ledger.claimed(id)) for id in sorted(row["id"] for row in rows)}
        found: dict[str, dict[str, Any]] = {}
        together: list[Mapping[str, Any]] = []
        alone: list[Mapping[str, Any]] = []  # a worker has died of it, or of one that was with it
        for row in rows:
            id = row["id"]
            recorded = ledger.read(id)
            if recorded and _settled(job, recorded, row):
                found[id] = recorded
            elif attempts[id].count(job.run) >= MOST_DEATHS:
                reason = f"its worker died {MOST_DEATHS} times; look for too little memory, or run this pair alone."
                found[id] = ledger.write(id, _failure(job, row, reason))
                attempts[id].end()
            else:
                (alone if attempts[id].count(job.run) else together).append(row)
        for group in (together, *([row] for row in alone)):
            found |= _attempt_and_record(job, group, attempts)
    return [found[row["id"]] for row in rows]


def _settled(job: Job, recorded: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a pair needs no work: it is done, or has failed in this very run."""
    if recorded["status"] == FAILED:
        return bool(recorded["run"] == job.run)
    return job.ledger.is_current(recorded, row)


def _attempt_and_record(
    job: Job, rows: Sequence[Mapping[str, Any]], attempts: Mapping[str, Attempts]
) -> dict[str, dict[str, Any]]:
    """Id -> recorded result."""
    ledger, recorded = job.ledger, {}
    for row in rows:
        attempts[row["id"]].begin(job.run)
        ledger.discard(row["id"])
    try:
        for id, result in _attempt(job, rows).items():
            recorded[id] = ledger.write(id, result)
            attempts[id].end()
    except (KeyboardInterrupt, SystemExit):
        for row in rows:
            attempts[row["id"]].end()  # its process ends on purpose
        raise
    return recorded


def _attempt(job: Job, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Id -> result of a pair, done or failed."""
    results = {row["id"]: _failure(job, row, str(row[ERROR])) for row in rows if ERROR in row}
    rows = [row for row in rows if ERROR not in row]
    if not rows:
        return results
    from monai_nodeo.cohort.pair_run import run_pairs, use_threads

    if job.threads is not None:
        use_threads(job.threads)
    inputs = {row["id"]: fingerprints(row) for row in rows}  # before they are read: a later change is seen next time
    started = time.time()
    try:
        figures = run_pairs(job.config, rows, Path(job.folder))
    except Exception as error:  # whatever is wrong with this pair, the others can be registered
        storage = blamed_on_storage(error, Path(job.folder))
        if storage is not None:
            raise storage from error
        if len(rows) > 1:  # whose fault it is shows when each is alone
            return results | {id: result for row in rows for id, result in _attempt(job, [row]).items()}
        (row,) = rows
        logger.exception("%s failed", row["id"])
        reason = f"{type(error).__name__}: {error}"
        return results | {row["id"]: _failure(job, row, reason, inputs[row["id"]])}
    seconds = round((time.time() - started) / len(rows), 3)
    for row in rows:
        id = row["id"]
        results[id] = (
            _failure(job, row, figures[id]["reason"], inputs[id])
            if figures[id]["status"] == FAILED
            else {"status": DONE, "run": job.run, "inputs": inputs[id], "seconds": seconds, "row": figures[id]}
        )
    return results


def _failure(job: Job, row: Mapping[str, Any], reason: str, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    paths = {key: row[key] for key in ("fixed", "moving") if key in row}
    table_row = {"id": row["id"], "status": FAILED, "reason": reason, **paths}
    return {
        "status": FAILED,
        "reason": reason,
        "run": job.run,
        "inputs": fingerprints(row) if inputs is None else inputs,
        "row": table_row,
    }
