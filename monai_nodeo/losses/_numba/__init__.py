# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numba kernels of losses with their gradients, for the CPU; chosen by `geometry._kernels`."""
