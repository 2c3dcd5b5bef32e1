# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration of one image pair by a neural ordinary differential equation, as MONAI components.

The names that most need are here, ``from monai_nodeo import register``; the others are in the rooms, as in ``from
monai_nodeo.losses import LocalNCCLoss``. All are loaded when they are asked for, so that asking for the version is
instant.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
