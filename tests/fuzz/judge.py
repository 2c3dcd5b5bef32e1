# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What every command owes its user, whatever the input is: the right answer, or an error of one line."""

import os
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings

from monai_nodeo.apps.cli import main

IDENTITY = "#Insight Transform File V1.0\n#Transform 0\nTransform: TranslationTransform_double_{0}_{0}\n"
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))  # times as many cases as in the test suite, and others every time


def cases(number: int) -> settings:
    """So many cases; the same ones each time in the test suite."""
    return settings(
        max_examples=number * SCALE,
        derandomize=SCALE == 1,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def run(*words: str | Path) -> Result:
    """A command line; an exception that is no exit fails the case, with its traceback."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def check_refusal(result: Result, *names: str | Path) -> None:
    """An error of one line that names one of the files, or an option."""
    lines = result.output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Error:"))
    assert len(lines) == start + 1, result.output
    assert result.exit_code in (1, 2, 3), result.output
    if result.exit_code == 1:
        assert any(str(name) in lines[start] for name in names), result.output
    assert len(lines[start]) > 20, result.output


def check_folder(folder: Path, before: set[str], output: Path, succeeded: bool) -> None:
    """Nothing but the output, and that only when it is whole."""
    after = {path.name for path in folder.iterdir()}
    assert after == before | ({output.name} if succeeded else set())
