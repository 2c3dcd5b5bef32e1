# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A cohort by ``torchrun``: what the bundle's multi_gpu.json calls. Each rank takes its share of the pairs.

Nothing is exchanged and no model is wrapped in DistributedDataParallel, which would average gradients of different
pairs; nor does a rank wait for another, so that a slow pair holds up nobody.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from monai_nodeo.cohort.ledger import Ledger
from monai_nodeo.cohort.run import InThisProcess, run_cohort
from monai_nodeo.cohort.settings import config_key
from monai_nodeo.cohort.storage import usable_folder
from monai_nodeo.cohort.summary import describe
from monai_nodeo.data.lists import absolute, requested_pairs
from monai_nodeo.registration.outputs import PairsFailedError

__all__ = ["device", "run"]

logger = logging.getLogger(__name__)


def device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def run(config: Mapping[str, Any], datalist: str | None, dataset_dir: str | None, output_dir: str) -> None:
    """Register this rank's share of a data list; without torchrun, all of it.

    Args:
        config: the running config.
        datalist: see :py:func:`monai_nodeo.data.lists.requested_pairs`.
        dataset_dir: see there.
        output_dir: folder of the results, the same for all ranks.

    Raises:
        PairsFailedError: when pairs failed, on the rank that ends last: torchrun stops the others when one fails.
    """
    rank, count = _place()
    rows = absolute(requested_pairs(datalist, dataset_dir))
    folder = usable_folder(Path(output_dir))
    ledger = Ledger(folder, config_key(config))
    summary = run_cohort(ledger, rows, rows[rank::count], lambda: config, InThisProcess())
    if summary["pending"]:
        return
    text = "\n".join(describe(summary, folder))
    if summary["failed"]:
        raise PairsFailedError(text)
    logger.info(text)


def _place() -> tuple[int, int]:
    """Rank and number of ranks, of a group that is there or that torchrun's environment describes."""
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return 0, 1
        dist.init_process_group("gloo")  # whatever the device: ranks are counted, no tensor is sent
    return dist.get_rank(), dist.get_world_size()
