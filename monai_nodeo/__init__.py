# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration of one image pair by a neural ordinary differential equation, as MONAI components.

The names that most need are here, ``from monai_nodeo import register``; the others are in the folders, as in ``from
monai_nodeo.losses import LocalNCCLoss``. All are loaded when they are asked for, so that asking for the version is
instant. A folder imports only from those that stand before it:

================  ======================================================================================
``geometry``      positions, samples, windows, smoothing, folds: tensors and compiled kernels
``files``         images, points and transforms as files, LPS mm, without torch
``flows``         velocities, solvers, `Flow`
``losses``        similarities and penalties, and their sum
``data``          pairs, lists of them, reading, the affine start, one grid for both
``metrics``       every number: Dice, folds, the certificate, the verdict
``registration``  from a pair to its flow: settings, levels, trainer, result, MONAI transforms
``report``        pages, viewer, plots, films
``apps``          what is built on it: the command line, cohorts, atlases, templates, motion, napari, ...
================  ======================================================================================
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
