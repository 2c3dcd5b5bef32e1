# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Velocity models, solvers and the flow that they make."""

from __future__ import annotations

import lazy_loader

# The inverse of another tool's field needs neither a model nor MONAI.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
