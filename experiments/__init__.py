# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The experiments of the paper and of its reproduction: ``python -m experiments --help``, ``make reproduce``."""
