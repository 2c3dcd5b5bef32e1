# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line ``monai-nodeo``: one module a command, imported when its command is named.

A command's module holds a click command of the name ``command`` and imports what it works with inside it, so that help
is there at once, without torch.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

import monai_nodeo
from monai_nodeo.apps.cli._client import hand_over
from monai_nodeo.apps.cli._status import INTERRUPTED
from monai_nodeo.extras import MissingExtraError

__all__ = ["main"]

COMMANDS = (
    "register",
    "sequence",
    "motion",
    "cohort",
    "bids",
    "propagate",
    "template",
    "flow",
    "volumes",
    "apply",
    "invert",
    "convert",
    "evaluate",
    "report",
    "view",
    "info",
    "serve",
)

# Threads of OpenMP that wait for work give their core away soon. torch reads it when it is imported first; see
# docs/decisions/cpu-threads.md.
os.environ.setdefault("GOMP_SPINCOUNT", "300")
# Large arrays in huge pages, where the system leaves that to the program; see docs/decisions/kept-memory.md.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_NO_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)  # as torch says it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class _Commands(click.Group):
    """The modules of this package as commands, in the order of `COMMANDS`; errors of the input in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def main(self, args: Sequence[str] | None = None, *others: Any, **named: Any) -> Any:
        if args is None and (status := hand_over(sys.argv[1:])) is not None:
            if status < 0:  # end by the same signal
                signal.signal(-status, signal.SIG_DFL)
                os.kill(os.getpid(), -status)
            sys.exit(status)
        return super().main(args, *others, **named)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as of  | head: click ends without a word
            raise
        except KeyboardInterrupt as interrupt:  # files appear whole or not at all
            click.echo(str(interrupt) or "interrupted: nothing is half-written.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except (ValueError, OSError, MissingExtraError) as error:
            # one line, whatever the names of files hold: no control characters reach the terminal
            raise click.ClickException(_CONTROL.sub(" ", str(error))) from error
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
                raise
            text = "memory ran out, and what was not finished is not written"
            raise click.ClickException(f"{text}; crop or resample the images, or do less at once.") from error


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(monai_nodeo.__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Register two images without training data, and use the transforms.

    Images are read in the place that their headers give them; transforms are files of ITK, as ANTs and Slicer use them.
    """
