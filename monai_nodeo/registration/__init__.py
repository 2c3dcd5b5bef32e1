# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The registration of a pair: settings, inferer, MONAI transforms, results.

``preparation`` makes of a pair what is optimised, ``optimisation`` is the loop, ``sequences`` is for series of images.
"""

from __future__ import annotations

import lazy_loader

# Settings need neither torch nor MONAI, and the command line asks for them first.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
