# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Positions, displacements and samples as torch tensors; the only room that knows units and axis order."""

from __future__ import annotations

import lazy_loader

# Figures of transform files need neither torch nor the samplers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
