# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of images: lists of them, reading, the affine start, one grid for both."""
