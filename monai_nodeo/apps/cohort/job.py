# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The job of a run, and what a worker does of it for some pairs.

It may be called any number of times, on any machine: a finished pair stays.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import monai_nodeo
from monai_nodeo.apps.cohort.inputs import fingerprints
from monai_nodeo.apps.cohort.ledger import DONE, FAILED, Attempts, Ledger
from monai_nodeo.apps.cohort.storage import blamed_on_storage, storage_errors
from monai_nodeo.data.lists import ERROR
from monai_nodeo.registration.metrics_table import failed_row

__all__ = ["MOST_DEATHS", "Derivatives", "Job", "NoDerivatives", "register_pairs", "register_rows"]

MOST_DEATHS = 3  # of its workers, after which a pair is not tried again in this run

logger = logging.getLogger(__name__)


class Derivatives(Protocol):
    """Files of a pair that lie outside its folder, under names of their own."""

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether they are all there."""

    def discard(self, row: Mapping[str, Any]) -> None:
        """Take them away: they are to be made anew."""

    def write(self, row: Mapping[str, Any], registration: Any, folder: Path) -> None:
        """Make them of a registration and its folder, which is complete."""


class NoDerivatives:
    """A pair has its folder alone."""

    def complete(self, row: Mapping[str, Any]) -> bool:
        return True

    def discard(self, row: Mapping[str, Any]) -> None: ...

    def write(self, row: Mapping[str, Any], registration: Any, folder: Path) -> None: ...


@dataclass(frozen=True)
class Job:
    """What the pairs of a run have in common.

    Attributes:
        folder: of the results, absolute.
        settings: of the registrations, as a dict.
        settings_key: of what results depend on.
        device: where to compute; None: a GPU if there is one.
        images: write warped images, what they say of the result, and fields; without, the flow and its figures alone.
        report: make the page of each pair, with images.
        threads: of a worker, None: as many as it has.
        run: name of this run of the command.
        version: of this package, which the workers have to have, too.
        inferer: instead of what the settings say, for a run within this process.
        derivatives: what is made of each registration besides its folder.
    """

    folder: str
    settings: Mapping[str, Any]
    settings_key: str
    device: str | None = None
    _: KW_ONLY
    images: bool = True
    report: bool = True
    threads: int | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: str = monai_nodeo.__version__
    inferer: Any = None
    derivatives: Derivatives = NoDerivatives()

    @property
    def ledger(self) -> Ledger:
        """Where the results are recorded."""
        return Ledger(Path(self.folder), self.settings_key, self.derivatives.complete)

    def make_inferer(self) -> Any:
        """What registers the pairs.

        Raises:
            ValueError: when the settings name something that there is not.
        """
        from monai_nodeo.registration import PairInferer, Settings

        return self.inferer or PairInferer(Settings.from_dict(self.settings), handlers=())

    def check(self) -> None:
        """Find out before the work whether the settings can be used; see :py:meth:`make_inferer`."""
        self.make_inferer()


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
        job.derivatives.discard(row)
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
    inputs = {row["id"]: fingerprints(row) for row in rows}  # before they are read: a later change is seen next time
    started = time.time()
    try:
        found = register_rows(job, rows)
    except Exception as error:  # whatever is wrong with this pair, the others can be registered
        storage = blamed_on_storage(error, Path(job.folder))
        if storage is not None:
            raise storage from error
        if len(rows) > 1:  # whose fault it is shows when each is alone
            return results | {id: result for row in rows for id, result in _attempt(job, [row]).items()}
        (row,) = rows
        if not isinstance(error, ValueError):  # those are written for users
            logger.exception("%s failed", row["id"])
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return results | {row["id"]: _failure(job, row, reason, inputs[row["id"]])}
    seconds = round((time.time() - started) / len(rows), 3)
    return results | {
        id: {"status": DONE, "run": job.run, "inputs": inputs[id], "seconds": seconds, "row": table_row}
        for id, table_row in found.items()
    }


def register_rows(job: Job, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Register pairs together and write their folders.

    Returns:
        id -> row of the table.
    """
    from monai_nodeo.data.load import load_pair
    from monai_nodeo.registration.malloc import keep_freed_memory

    started = time.perf_counter()
    if job.threads is not None:
        _use_threads(job.threads)
    inferer = job.make_inferer()
    smallest = inferer.components.velocity.min_size
    with keep_freed_memory():
        pairs = [load_pair(row, inferer.settings.spatial_dims, smallest) for row in rows]
        registrations = inferer.register(pairs, job.device)
        share = (time.perf_counter() - started) / len(rows)
        return {
            row["id"]: _saved(job, row, registration, share)
            for row, registration in zip(rows, registrations, strict=True)
        }


def _saved(job: Job, row: Mapping[str, Any], registration: Any, share: float) -> dict[str, Any]:
    from monai_nodeo.registration.metrics_table import row_of

    started = time.perf_counter()
    id = row["id"]
    folder = job.ledger.pair_folder(id)
    if not job.images:
        registration = replace(registration, pair=None)
    figures = registration.save(folder, seconds_total=share + time.perf_counter() - started, fields=job.images)
    job.derivatives.write(row, registration, folder)
    if job.report and job.images:
        from monai_nodeo.report import write_report

        try:
            write_report(registration, figures, folder)
        except (OSError, ValueError) as error:  # the registration is there
            logger.warning("%s: no report: %s", id, error)
    return row_of(figures)


def _use_threads(count: int) -> None:
    """Threads of torch and of the affine start in this process."""
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def _failure(job: Job, row: Mapping[str, Any], reason: str, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "status": FAILED,
        "reason": reason,
        "run": job.run,
        "inputs": fingerprints(row) if inputs is None else inputs,
        "row": failed_row(row, reason),
    }
