# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs a minute of a cohort: one by one, in batches, and by several workers.

    python benchmarks/throughput.py pairs.json [--pairs 48] [--set name=value]

Each way registers a few pairs and then many, in fresh folders, and the difference counts: what it takes to start does
not. Results are written as usual, without reports. Prints a table and writes throughput.json beside this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

FEW = 8
WAYS = {
    "one by one, one thread": ["--threads", "1"],
    "one by one, all threads": [],
    "batches of 4, one thread": ["--threads", "1", "--batch", "4"],
    "2 workers, one thread each": ["--workers", "2", "--threads", "1"],
    "2 workers, batches of 4": ["--workers", "2", "--threads", "1", "--batch", "4"],
}


def seconds(rows: list[dict[str, str]], words: list[str]) -> float:
    """Time of the command for some pairs."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.json"
        pairs.write_text(json.dumps(rows), encoding="utf-8")
        command = [sys.executable, "-m", "monai_nodeo", "cohort", str(pairs), "-o", f"{folder}/out", "--no-report"]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        started = time.perf_counter()
        subprocess.run([*command, "--quiet", *words], check=True, env=environment)
        return time.perf_counter() - started


@click.command()
@click.argument("datalist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pairs", "many", default=48, help="Pairs that are counted; the list is repeated if it is shorter.")
@click.option("--set", "settings", multiple=True, help="Any setting, as of the command.")
def main(datalist: Path, many: int, settings: tuple[str, ...]) -> None:
    """Measure every way on the pairs of DATALIST."""
    listed = [
        {key: str(datalist.parent.resolve() / path) for key, path in row.items()}
        for row in json.loads(datalist.read_text(encoding="utf-8"))
    ]
    rows = [{**listed[i % len(listed)], "id": f"p{i}"} for i in range(FEW + many)]
    more = [word for setting in settings for word in ("--set", setting)]
    found = {}
    for name, words in WAYS.items():
        few, all_ = (seconds(rows[:count], [*words, *more]) for count in (FEW, FEW + many))
        found[name] = {
            "seconds_a_pair": round((all_ - few) / many, 3),
            "pairs_a_minute": round(60 * many / (all_ - few), 1),
        }
        print(f"{name:28} {found[name]}", flush=True)
    result = {"cores": os.cpu_count(), "pairs": many, "ways": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
