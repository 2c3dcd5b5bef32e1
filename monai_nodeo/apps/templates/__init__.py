# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The mean image of a group."""
