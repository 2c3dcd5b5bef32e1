# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Positions, displacements and samples as torch tensors; the only room that knows units and axis order."""
