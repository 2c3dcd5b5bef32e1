# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Numba kernels for the CPU: what is done elsewhere by plain operations, in few passes through memory."""
