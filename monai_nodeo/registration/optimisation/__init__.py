# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The loop: levels from coarse to fine, the trainer of a level and its handlers."""
