# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Motion of a head, or of anything rigid, in a series of volumes."""
