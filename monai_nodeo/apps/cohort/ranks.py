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
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from monai_nodeo.apps.bundle.parts import PairsFailedError
from monai_nodeo.apps.cohort.job import Job
from monai_nodeo.apps.cohort.keys import settings_key
from monai_nodeo.apps.cohort.run import InThisProcess, run_cohort
from monai_nodeo.apps.cohort.storage import usable_folder
from monai_nodeo.apps.cohort.summary import describe
from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.lists import absolute
from monai_nodeo.extras import report_or_not
from monai_nodeo.registration import PairInferer

__all__ = ["device", "run"]

logger = logging.getLogger(__name__)


def device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def run(inferer: PairInferer, dataset: PairDataset, output_dir: str | PathLike[str], report: bool = True) -> None:
    """Register this rank's share of a data list; without torchrun, all of it.

    Args:
        inferer: of the config.
        dataset: whose rows are the cohort.
        output_dir: folder of the results, the same for all ranks.
        report: make the page of each pair, and one over all.

    Raises:
        ValueError: when there is nothing to register.
        PairsFailedError: when pairs failed, on the rank that ends last: torchrun stops the others when one fails.
    """
    if not dataset.data:
        raise ValueError("no pair was given; give fixed and moving, or a datalist.")
    rank, count = _place()
    rows = absolute(dataset.data)
    settings = inferer.settings.to_dict()
    used, named = (
        _described({**vars(x.components), "uncertainty": x.uncertainty})
        for x in (inferer, PairInferer(inferer.settings))
    )
    key = settings_key(settings, *([] if used == named else [used]))  # the command's, where the settings say it all
    folder = str(usable_folder(Path(output_dir)))
    job = Job(folder, settings, key, str(device()), report=report_or_not(report), inferer=inferer)
    summary = run_cohort(job, rows, rows[rank::count], InThisProcess())
    if summary["pending"]:
        return
    text = "\n".join(describe(summary, Path(job.folder)))
    if summary["failed"]:
        raise PairsFailedError(text)
    logger.info(text)


def _described(part: Any) -> Any:
    """What an object was made of, as JSON holds it: its class and the plain values in it, of modules in it too."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Mapping):
        return {str(name): _described(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_described(value) for value in part]
    if isinstance(part, partial):
        return [_described(part.func), _described(part.args), _described(part.keywords)]
    if hasattr(part, "__qualname__"):  # a class or a function
        home = part.__module__.split(".")
        return ".".join([*(home[:1] if home[0] == "monai_nodeo" else home), part.__qualname__])  # ours may move
    values = {name: value for name, value in getattr(part, "__dict__", {}).items() if not name.startswith("_")}
    if isinstance(part, nn.Module):
        values |= dict(part.named_children())
    return [_described(type(part)), _described(values)]


def _place() -> tuple[int, int]:
    """Rank and number of ranks, of a group that is there or that torchrun's environment describes."""
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return 0, 1
        dist.init_process_group("gloo")  # whatever the device: ranks are counted, no tensor is sent
    return dist.get_rank(), dist.get_world_size()
