# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pages that show what a registration did: one for each pair, and one over many pairs."""

from __future__ import annotations

from monai_nodeo.extras import extra

with extra("report", "reports"):
    from monai_nodeo.report.index import write_index
    from monai_nodeo.report.page import remake_report, write_report
    from monai_nodeo.report.sequence import write_sequence_report
    from monai_nodeo.report.view import write_view

__all__ = ["remake_report", "write_index", "write_report", "write_sequence_report", "write_view"]
