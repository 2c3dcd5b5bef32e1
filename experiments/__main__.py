# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m experiments``: run what is not done yet, write the page, fetch the data."""

from __future__ import annotations

from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "reproduction.md"
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Reproduce the experiments of NODEO and of its reproduction report, and those that were never published."""


@main.command()
@click.argument("groups", nargs=-1)
@click.option("--data", type=FOLDER, envvar="MONAI_NODEO_DATA", help="Folder of the OASIS data, as `oasis` makes it.")
@click.option("--results", type=FOLDER, default=RESULTS, help="Folder of the JSON results.")
@click.option("--quick", is_flag=True, help="Small drawn slices, few iterations: does everything work?")
def run(groups: tuple[str, ...], data: Path | None, results: Path, quick: bool) -> None:
    """Run the experiments of GROUPS (all by default) that have no result of the same settings yet.

    The groups are the headings of docs/reproduction.md: volumes, figure, cohort, steps, solver, gradient, bottleneck,
    smoothing and similarity. OMP_NUM_THREADS says how many threads are used.
    """
    from experiments.catalogue import experiments
    from experiments.running import run_all

    known = experiments(quick)
    unknown = sorted(set(groups) - set(known))
    if unknown:
        raise click.UsageError(f"unknown group {', '.join(unknown)}; known are {', '.join(known)}.")
    runs = {run.name: run for name, group in known.items() if name in (groups or known) for run in group.values()}
    try:
        run_all(list(runs.values()), data, results, apart=not quick)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--results", type=FOLDER, default=RESULTS, help="Folder of the JSON results.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, help="Markdown to write.")
@click.option("--quick", is_flag=True, help="The page of a quick run.")
def page(results: Path, output: Path, quick: bool) -> None:
    """Write the page of all results: tables, and the figures of fields that were kept on this machine."""
    from experiments.page import write_page

    try:
        write_page(results, output, quick)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--slices-only", is_flag=True, help="The slices alone: 24 MB instead of 6.6 GB.")
def oasis(folder: Path, slices_only: bool) -> None:
    """Download neurite-OASIS into FOLDER, check it and write data lists beside it.

    By downloading you accept the OASIS Data Use Agreement, https://sites.wustl.edu/oasisbrains. The archive is kept in
    the system's temporary folder on the way; set TMPDIR where that one is small.
    """
    from experiments.oasis import SLICES, VOLUMES, fetch

    for archive in (SLICES,) if slices_only else (SLICES, VOLUMES):
        try:
            lists = fetch(archive, folder)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        for path in lists:
            click.echo(path)


if __name__ == "__main__":
    main()
