# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of an image from atlases, images whose labels are known."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
