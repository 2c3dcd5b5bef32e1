# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What workers of other processes run in the place of a registration; imports nothing that they would not."""

import os
import sys
import time
from typing import Any

from monai_nodeo.apps.cohort.job import Job

Batch = list[dict[str, Any]]


def where(job: Job, batch: Batch) -> Batch:
    """In which environment pairs are run, and whether torch was imported before."""
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    return [{**row, **seen, "pid": os.getpid(), "torch": "torch" in sys.modules} for row in batch]


def die_at_p1(job: Job, batch: Batch) -> Batch:
    """What `register_pairs` does about deaths, and a pair that no worker survives."""
    (row,) = batch
    with job.ledger.claimed(row["id"]) as attempts:
        if attempts.count(job.run) >= 3:
            return [{**row, "status": "failed"}]
        attempts.begin(job.run)
        if row["id"] == "p1":
            os.kill(os.getpid(), 9)
        attempts.end()
    return [{**row, "status": "done"}]


def wait(job: Job, batch: Batch) -> Batch:
    """Pairs that take their time."""
    time.sleep(0.2)
    return batch
