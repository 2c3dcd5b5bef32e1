# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of losses with their gradients, for CUDA; chosen by `geometry._kernels`."""
