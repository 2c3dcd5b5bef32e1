# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration of one image pair by a neural ordinary differential equation, as MONAI components.

Import from the rooms: ``from monai_nodeo.losses import LocalNCCLoss``. The package itself imports nothing, so that
asking for its version is instant.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
