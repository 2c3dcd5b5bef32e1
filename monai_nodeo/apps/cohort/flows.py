# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs registered for their flows, as a step of a larger work, which goes on where it was killed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.apps.cohort.job import Derivatives, Job, NoDerivatives
from monai_nodeo.apps.cohort.keys import settings_key
from monai_nodeo.apps.cohort.ledger import FAILED
from monai_nodeo.apps.cohort.run import Engine, InThisProcess, run_cohort
from monai_nodeo.flows import Flow
from monai_nodeo.registration import Settings
from monai_nodeo.registration.folder import FLOW, read_figures, start_of
from monai_nodeo.registration.refusal import UNDEFENDED

__all__ = ["Flows", "Found", "Registrar"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """What the registration of a pair found.

    Attributes:
        flow: from the fixed image.
        start: affine that comes after it, (4, 4) RAS mm, float64.
        similarity_loss: between the fixed and the warped image.
    """

    flow: Flow
    start: Tensor
    similarity_loss: float


@dataclass(frozen=True)
class Flows:
    """What the registrations of pairs found.

    Attributes:
        found: id -> what can be used, in the order of the pairs.
        failures: id -> why there is none.
    """

    found: dict[str, Found] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registrar:
    """Registers pairs on an engine, and keeps their flows and figures in a folder with a ledger.

    Args:
        engine: by default this process.
        batch: pairs that are given to a worker at once, which optimises together those that are alike.
        device: where to compute; by default a GPU if there is one.
    """

    engine: Engine = InThisProcess()
    batch: int = 1
    device: str | None = None

    def __call__(
        self,
        folder: Path,
        rows: Sequence[Mapping[str, Any]],
        settings: Settings,
        report: bool = False,
        derivatives: Derivatives = NoDerivatives(),  # noqa: B008
    ) -> Flows:
        """Register what is not there yet, from these files and with these settings.

        A pair that fails, or whose deformation cannot be defended, is logged.

        Args:
            folder: of the results, absolute.
            rows: with absolute paths.
            settings: of the registrations.
            report: make the page of each pair, and keep warped images and fields, too.
            derivatives: what is kept besides.

        Raises:
            StorageError: when the results cannot be written.
        """
        values = settings.to_dict()
        job = Job(
            str(folder),
            values,
            settings_key(values),
            self.device,
            images=report,
            report=report,
            derivatives=derivatives,
        )
        run_cohort(job, rows, rows, self.engine, self.batch)
        flows = Flows()
        for id in (row["id"] for row in rows):
            result = job.ledger.read(id)
            if result is None or result["status"] == FAILED:
                flows.failures[id] = result["reason"] if result else "its result is gone; run the same command again."
                continue
            figures = read_figures(folder / id)
            if not figures["accepted"]:
                flows.failures[id] = UNDEFENDED
                logger.error("%s: %s", id, UNDEFENDED)
                continue
            start = start_of(figures)
            start = torch.eye(4, dtype=torch.float64) if start is None else start
            flows.found[id] = Found(Flow.load(folder / id / FLOW), start, figures["after"]["similarity"])
        return flows
