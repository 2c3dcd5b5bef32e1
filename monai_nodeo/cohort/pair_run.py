# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs through the bundle's config, in this process."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from monai.bundle import ComponentLocator, ConfigParser

from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.registration.outputs import TABLE

__all__ = ["check_config", "run_pairs", "use_threads"]


def check_config(config: Mapping[str, Any], row: Mapping[str, Any], folder: Path) -> None:
    """Find out before the work whether the config can be built and the folder written to.

    Args:
        config: the resolved config.
        row: any good row; its images are not opened.
        folder: of all results.

    Raises:
        ValueError: with the config's own message.
    """
    try:
        _parser(config, [row], folder).get_parsed_content("initialize")
    except SystemExit as error:
        raise ValueError(str(error).removeprefix("error: ")) from error


def run_pairs(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, dict[str, str]]:
    """Register pairs, as many at once as the config's batch_size says, and write their files.

    Every object is made anew from the config, so that nothing of the previous pairs is left.

    Args:
        config: the resolved config.
        rows: paths and id of each.
        folder: of all results, with a folder for each pair.

    Returns:
        id -> row of the table; where the input was at fault, it says so by its status and reason.
    """
    # They tell the number of the row, which is that in this short list; the failure is reported by its id.
    for name in ("monai_nodeo.data.dataset", "ignite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _parser(config, rows, folder).get_parsed_content("evaluator").run()
    return {row["id"]: _table_row(folder / row["id"] / TABLE) for row in rows}


def _table_row(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.DictReader(file))


def use_threads(count: int) -> None:
    """Threads of torch and of the affine start in this process."""
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


@lru_cache(maxsize=1)
def _locator() -> ComponentLocator:
    """Where MONAI's classes are; to find out takes a tenth of a second."""
    return ComponentLocator()


def _parser(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> ConfigParser:
    parser = ConfigParser(deepcopy(dict(config)))
    parser.locator = _locator()
    parser.update(dict.fromkeys((*PATH_KEYS, "pair_id", "datalist")))
    parser.update({"output_dir": str(folder), "pair_folder": "{id}", "table": f"{{id}}/{TABLE}"})
    parser.parse(reset=True)
    parser["dataset::data"] = [dict(row) for row in rows]
    return parser
