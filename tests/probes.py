# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What workers of other processes run in the place of a registration; imports nothing that they would not."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from monai_nodeo.cohort.task import Job


def where(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """In which environment a pair is run, and whether torch was imported before."""
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    return {**row, **seen, "pid": os.getpid(), "torch": "torch" in sys.modules}


def die_at_p1(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """What `register_pair` does about deaths, and a pair that no worker survives."""
    with job.ledger.claimed(row["id"]) as attempts:
        if attempts.count(job.run) >= 3:
            return {**row, "status": "failed"}
        attempts.begin(job.run)
        if row["id"] == "p1":
            os.kill(os.getpid(), 9)
        attempts.end()
    return {**row, "status": "done"}


def wait(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """A pair that takes its time."""
    time.sleep(0.2)
    return row
