# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Python behind the MONAI bundle: its workflow, and what its config refers to."""
