# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is raised for bad input. Needs neither torch nor MONAI."""

from __future__ import annotations

__all__ = ["PairError"]


class PairError(ValueError):
    """A pair that cannot be registered. The message names the file, what was found and what to do."""
