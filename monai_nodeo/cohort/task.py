# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker does for a pair. It may be called any number of times, on any machine: a finished pair stays."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai_nodeo
from monai_nodeo.cohort.inputs import fingerprints
from monai_nodeo.cohort.ledger import DONE, FAILED, Ledger
from monai_nodeo.cohort.storage import blamed_on_storage, storage_errors
from monai_nodeo.pair_lists import ERROR

__all__ = ["MOST_DEATHS", "Job", "register_pair"]

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


def register_pair(job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
    """Register a pair unless that is done, and record what came out.

    Args:
        job: of the run.
        row: paths and id, or id and error.

    Returns:
        The recorded result: "id", "status", "reason" of a failure, "row" of the table.

    Raises:
        StorageError: when the results cannot be written; a pair at fault is a recorded failure instead.
        ValueError: when this worker has another version of the package.
    """
    if job.version != monai_nodeo.__version__:
        raise ValueError(
            f"a worker has monai_nodeo {monai_nodeo.__version__}, the command {job.version}; install the same on both."
        )
    ledger = job.ledger
    folder = ledger.pair_folder(row["id"])
    with storage_errors(ledger.folder), ledger.claimed(row["id"]) as attempts:
        recorded = ledger.read(row["id"])
        if recorded and _settled(job, recorded, row):
            return recorded
        if attempts.count(job.run) >= MOST_DEATHS:
            reason = f"its worker died {MOST_DEATHS} times; look for too little memory, or run this pair alone."
            result = ledger.write(row["id"], _failure(job, row, reason))
        else:
            attempts.begin(job.run)
            ledger.discard(row["id"])
            try:
                result = ledger.write(row["id"], _attempt(job, row, folder))
            except (KeyboardInterrupt, SystemExit):
                attempts.end()  # its process ends on purpose
                raise
        attempts.end()
    return result


def _settled(job: Job, recorded: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a pair needs no work: it is done, or has failed in this very run."""
    if recorded["status"] == FAILED:
        return bool(recorded["run"] == job.run)
    return job.ledger.is_current(recorded, row)


def _attempt(job: Job, row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a pair, done or failed."""
    if ERROR in row:
        return _failure(job, row, str(row[ERROR]))
    from monai_nodeo.cohort.pair_run import PairFailedError, run_pair, use_threads

    if job.threads is not None:
        use_threads(job.threads)
    inputs = fingerprints(row)  # before they are read: a change meanwhile is then seen the next time
    started = time.time()
    try:
        figures = run_pair(job.config, row, folder)
    except PairFailedError as error:
        return _failure(job, row, str(error), inputs)
    except Exception as error:  # whatever is wrong with this pair, the others can be registered
        storage = blamed_on_storage(error, folder)
        if storage is not None:
            raise storage from error
        logger.exception("%s failed", row["id"])
        return _failure(job, row, f"{type(error).__name__}: {error}", inputs)
    seconds = round(time.time() - started, 3)
    return {"status": DONE, "run": job.run, "inputs": inputs, "seconds": seconds, "row": figures}


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
