# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is built on a registration, a folder or a file for each use.

The command line is `apps.cli`, the code behind the MONAI bundle `apps.bundle`. What programs call is here: ``from
monai_nodeo.apps import propagate``.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
