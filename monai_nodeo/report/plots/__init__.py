# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a registration. Every picture of the reports, of the README and of the docs is made here, once.

The functions keep no state and leave pyplot alone. Images are turned to RAS for the eye, whatever the orientation of
the stored array: the patient's right on the right, anterior and superior up, in millimetres.
"""

from __future__ import annotations

from monai_nodeo.report.plots.charts import plot_dice, plot_distribution, plot_history
from monai_nodeo.report.plots.figures import plot_columns, plot_grid, plot_jacobian, plot_registration

__all__ = [
    "plot_columns",
    "plot_dice",
    "plot_distribution",
    "plot_grid",
    "plot_history",
    "plot_jacobian",
    "plot_registration",
]
