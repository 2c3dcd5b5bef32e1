# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of images: lists of them, reading, the affine start, one grid for both."""

from __future__ import annotations

import lazy_loader

# Lists need neither torch nor MONAI.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
