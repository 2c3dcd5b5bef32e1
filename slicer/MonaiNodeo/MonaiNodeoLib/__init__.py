# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the module of Slicer does without Slicer."""
