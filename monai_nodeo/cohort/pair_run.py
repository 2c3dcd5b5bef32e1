# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One pair through the bundle's config, in this process."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser

from monai_nodeo.outputs import TABLE
from monai_nodeo.pair_keys import PATH_KEYS

__all__ = ["PairFailedError", "check_config", "run_pair", "use_threads"]


class PairFailedError(Exception):
    """A pair that was not registered, with the reason that the table shall tell."""


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
        _parser(config, row, folder).get_parsed_content("initialize")
    except SystemExit as error:
        raise ValueError(str(error).removeprefix("error: ")) from error


def run_pair(config: Mapping[str, Any], row: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Register a pair and write its files.

    Every object is made anew from the config, so that nothing of the previous pair is left.

    Args:
        config: the resolved config.
        row: paths and id.
        folder: of this pair, which exists.

    Returns:
        Its row of the table.

    Raises:
        PairFailedError: when the input is at fault.
    """
    # They tell the number of the row, which is 1 in each of these lists; the failure is reported by its id.
    for name in ("monai_nodeo.datalist", "ignite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    parser = _parser(config, row, folder)
    try:
        evaluator, dataset = (parser.get_parsed_content(id) for id in ("evaluator", "dataset"))
        evaluator.run()
    except SystemExit as error:
        raise PairFailedError(str(error).removeprefix("error: ")) from error
    if dataset.failures:
        raise PairFailedError(dataset.failures[0].reason)
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        return next(csv.DictReader(file))


def use_threads(count: int) -> None:
    """Threads of torch and of the affine start in this process."""
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def _parser(config: Mapping[str, Any], row: Mapping[str, Any], folder: Path) -> ConfigParser:
    parser = ConfigParser(deepcopy(dict(config)))
    parser.update({key: row.get(key) for key in PATH_KEYS} | {"pair_id": row["id"], "datalist": None})
    parser.update({"output_dir": str(folder), "pair_folder": "."})
    parser.parse(reset=True)
    return parser
