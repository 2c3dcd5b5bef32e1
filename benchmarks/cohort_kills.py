# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A cohort while its workers, its scheduler and the command itself are killed (SIGKILL), against a quiet run.

    python benchmarks/cohort_kills.py pairs.json --output kills [--kills 3] [--set iterations=[5,5]]

Three runs into one folder: workers of the command die at random times, then the command itself; workers of a cluster
of its own scheduler die, then the scheduler; the last is left in peace. Then every pair must have one complete result,
none replaced after it was first seen, and the figures of the quiet run. Prints and writes ``kills.json`` there.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# They differ from run to run.
MEASURED = {"seconds_optimisation", "seconds_total", "peak_memory_mb", "device"}


class Watcher(threading.Thread):
    """Notes when each result.json was first seen, and whether it is replaced or vanishes later."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.seen: dict[str, tuple[int, int]] = {}
        self.recomputed: set[str] = set()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            self.look()

    def look(self) -> None:
        now = {path.parent.name: identity(path) for path in self.folder.glob("*/result.json")}
        self.recomputed |= {id for id, first in self.seen.items() if now.get(id) != first}
        self.seen = {**now, **self.seen}

    def stop(self) -> None:
        self.stopped.set()
        self.join()
        self.look()


def identity(path: Path) -> tuple[int, int]:
    """Changes when a file is written again."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def workers(roots: list[psutil.Process]) -> list[psutil.Process]:
    """Worker processes among the descendants of processes that we started."""
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += [child for child in root.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    return found


def wait_for(watcher: Watcher, results: float, command: subprocess.Popen[str]) -> bool:
    """Wait until so many results are there; whether the command still runs then."""
    while len(watcher.seen) < results and command.poll() is None:
        time.sleep(0.02)
    return command.poll() is None


def kill_workers(
    roots: list[psutil.Process], command: subprocess.Popen[str], watcher: Watcher, moments: list[float]
) -> int:
    """Kill a worker whenever so many results are there, and a random while later; how many were killed."""
    killed = 0
    for results in sorted(moments):
        if not wait_for(watcher, results, command):
            break
        time.sleep(random.uniform(0, 0.5))
        while not (victims := workers(roots)) and command.poll() is None:
            time.sleep(0.1)
        with suppress(psutil.NoSuchProcess, IndexError):
            random.choice(victims).kill()
            killed += 1
    return killed


@contextmanager
def cluster(folder: Path, count: int):
    """A scheduler and workers as processes of their own: the scheduler's file, and the processes."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    local = ["--scheduler-file", str(file), "--no-dashboard"]
    processes = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *local], **quiet)]
    worker = [*dask, "worker", *local, "--nthreads", "1", "--local-directory", str(folder / "scratch")]
    processes += [subprocess.Popen(worker, **quiet) for _ in range(count)]
    while not file.exists():
        time.sleep(0.1)
    try:
        yield file, [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes[1:] + processes[:1]:
            process.terminate()
        for process in processes:
            process.wait(30)


def table(folder: Path) -> dict[str, dict[str, str]]:
    """Id -> figures of a run, without those that are measured."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: {k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)}


Words = list[str]


def in_a_process(words: Words) -> int:
    """Run the command to its end: its exit status."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run([sys.executable, "-m", "monai_nodeo", "cohort", *words], **quiet).returncode


def main(argv: Words | None = None, in_peace: Callable[[Words], int] = in_a_process) -> None:
    """Run, compare, print; ``in_peace`` runs the command where nothing is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=3, help="of workers, in each run with kills")
    parser.add_argument("--local-only", action="store_true", help="without the run on a cluster")
    parser.add_argument("--set", action="append", default=[], help="as for the command")
    arguments = parser.parse_args(argv)
    random.seed(0)
    folder = arguments.output.absolute()
    folder.mkdir(parents=True)
    count = len(json.loads(Path(arguments.pairs).read_text(encoding="utf-8")))
    settings: Words = [
        "--no-report",
        "--device",
        "cpu",
        *(word for value in arguments.set for word in ("--set", value)),
    ]

    def words(output: str, *engine: str) -> Words:
        return [arguments.pairs, "-o", str(folder / output), *engine, *settings]

    def start(output: str, *engine: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "monai_nodeo", "cohort", *words(output, *engine)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def moments(start: float, end: float) -> list[float]:
        return [random.uniform(start, end) * count for _ in range(arguments.kills)]

    started = time.perf_counter()
    assert in_peace(words("quiet")) == 0
    seconds = {"quiet, one process": round(time.perf_counter() - started, 1)}

    started = time.perf_counter()
    watcher = Watcher(folder / "killed")
    watcher.start()
    command = start("killed", "--workers", "2")
    killed = kill_workers([psutil.Process(command.pid)], command, watcher, moments(0.05, 0.4))
    figures: dict[str, object] = {"command_killed_while_running": wait_for(watcher, 0.45 * count, command)}
    command.kill()
    command.communicate()
    figures["done_when_command_killed"] = len(watcher.seen)

    if not arguments.local_only:
        with cluster(folder, 2) as (file, processes):
            command = start("killed", "--scheduler-file", str(file))
            killed += kill_workers(processes[1:], command, watcher, moments(0.5, 0.8))
            figures["scheduler_killed_while_running"] = wait_for(watcher, 0.85 * count, command)
            processes[0].kill()
            said = command.communicate(timeout=120)[1].strip().splitlines()
        figures |= {"status_after_the_scheduler": command.returncode, "said_after_the_scheduler": said[-1:]}
        figures["done_when_scheduler_killed"] = len(watcher.seen)

    last = in_peace(words("killed"))
    watcher.stop()
    seconds["with kills, two workers"] = round(time.perf_counter() - started, 1)
    expected, found = table(folder / "quiet"), table(folder / "killed")
    figures |= {
        "pairs": len(expected),
        "workers_killed": killed,
        "status_of_last_run": last,
        "complete": sum(row["status"] == "done" for row in found.values()),
        "recomputed_after_result": sorted(watcher.recomputed),
        "figures_as_in_quiet_run": found == expected,
        "seconds": seconds,
    }
    (folder / "kills.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
