# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Exit statuses that several commands have."""

from __future__ import annotations

__all__ = ["INTERRUPTED"]

INTERRUPTED = 130  # as shells say it of SIGINT
