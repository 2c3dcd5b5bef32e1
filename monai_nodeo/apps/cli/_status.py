# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How commands end that have it in common."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

__all__ = ["INTERRUPTED", "told_to_go_on"]

INTERRUPTED = 130  # as shells say it of SIGINT


@contextmanager
def told_to_go_on(folder: Path) -> Iterator[None]:
    """Ctrl-C, and a batch system's way to end a job, end a command that the same command goes on with.

    Args:
        folder: of the results.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted: what is finished is in {folder}; run the same command to go on.", err=True)
        sys.exit(INTERRUPTED)
