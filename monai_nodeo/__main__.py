# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_nodeo``: the command line without its entry point."""

from __future__ import annotations

from monai_nodeo.apps.cli import main

main(prog_name="monai-nodeo")
