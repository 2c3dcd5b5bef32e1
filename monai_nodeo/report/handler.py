# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Reports of an evaluator's pairs while it runs."""

from __future__ import annotations

import logging
from pathlib import Path

from ignite.engine import Engine, Events
from monai.config import PathLike

from monai_nodeo.report.cohort import write_index
from monai_nodeo.report.page import write_report

__all__ = ["ReportPair"]

logger = logging.getLogger(__name__)


class ReportPair:
    """Evaluator handler that makes the report of each pair, and at the end the page over all of them.

    It reads the files of `SavePair`: attach it after that one. A report that cannot be
    made is a warning, because the registration is there and the next pair waits.

    Args:
        output_dir: folder of the results.
        pair_folder: name of a pair's folder, as for that handler; without ``{id}`` there is one pair, and no page over
            many.
        table: as for that handler; with ``{id}`` each pair is for itself, and there is no page over many either.
    """

    def __init__(self, output_dir: PathLike, pair_folder: str = "{id}", table: str = "") -> None:
        self.output_dir = Path(str(output_dir)).expanduser().absolute()
        self.pair_folder = pair_folder
        self.table = table

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if "{id}" in self.pair_folder and "{id}" not in self.table:
            engine.add_event_handler(Events.COMPLETED, lambda _: write_index(self.output_dir))

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.batch:
            try:
                write_report(self.output_dir / self.pair_folder.format(id=item["id"]))
            except (OSError, ValueError) as error:
                logger.warning("%s: no report: %s", item["id"], error)
