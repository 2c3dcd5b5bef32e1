# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is finished, said by files: a pair is done when its folder holds a ``result.json`` of its inputs."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from monai_nodeo.apps.cohort.inputs import same_inputs
from monai_nodeo.files import atomic_path
from monai_nodeo.files.locks import lock

__all__ = ["DONE", "FAILED", "RESULT", "Attempts", "Ledger", "locked"]

RESULT = "result.json"
DONE, FAILED = "done", "failed"
_ENTRIES = {"status", "run", "inputs", "settings_key", "row"}
_CLAIM = ".claim"


@dataclass(frozen=True)
class Attempts:
    """Attempts at a pair that have not ended: those of processes that died, and the one that is going on.

    Args:
        file: holds a line an attempt, open while the pair is claimed.
    """

    file: IO[str]

    def count(self, run: str) -> int:
        """Attempts of one run of the command."""
        self.file.seek(0)
        return sum(line.split()[0] == run for line in self.file if line.endswith("\n"))

    def begin(self, run: str) -> None:
        """Note an attempt on the disk, before anything can happen to its process."""
        self.file.seek(0, os.SEEK_END)
        self.file.write(f"{run} {platform.node()} {os.getpid()}\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def end(self) -> None:
        """Forget them: the pair has a result, or was given up on purpose."""
        self.file.truncate(0)


@dataclass(frozen=True)
class Ledger:
    """Results of the pairs in a folder, one folder a pair.

    Attributes:
        folder: of all results, absolute.
        settings_key: of the settings that they are to be made with.
        complete: whether the files of a row's result that lie elsewhere are all there.
    """

    folder: Path
    settings_key: str
    complete: Callable[[Mapping[str, Any]], bool] = lambda row: True

    def pair_folder(self, id: str) -> Path:
        """Where the files of a pair are."""
        return self.folder / id

    def read(self, id: str) -> dict[str, Any] | None:
        """The result of a pair as it was recorded, whatever it was made from."""
        try:
            result = json.loads((self.pair_folder(id) / RESULT).read_bytes())
        except (OSError, ValueError):  # none yet, or a file that is not ours
            return None
        return result if isinstance(result, dict) and set(result) >= _ENTRIES else None

    def is_current(self, result: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        """Whether a result was made from the row's files as they are, with these settings, and is complete."""
        same = result["settings_key"] == self.settings_key and same_inputs(result["inputs"], row)
        return same and self.complete(row)

    def finished(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a pair that needs no work."""
        result = self.read(row["id"])
        return result if result and result["status"] == DONE and self.is_current(result, row) else None

    def write(self, id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record the result of a pair whose files are complete; with it go the names of these."""
        folder = self.pair_folder(id)
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        recorded = {"id": id, **result, "settings_key": self.settings_key, "files": names}
        with atomic_path(folder / RESULT) as partial, partial.open("w", encoding="utf-8") as file:
            json.dump(recorded, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        return recorded

    def discard(self, id: str) -> None:
        """Take away an older result and its files, and what killed processes left: only what the ledger made."""
        folder, result = self.pair_folder(id), self.read(id)
        (folder / RESULT).unlink(missing_ok=True)  # first, so that it never vouches for a part of its files
        for name in result.get("files", []) if result else []:
            (folder / Path(name).name).unlink(missing_ok=True)
        for partial in folder.glob(".*.*.*/"):  # hidden folders of atomic_path
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def claimed(self, id: str) -> Iterator[Attempts]:
        """Be the only process, on all machines, that works on a pair; waits for the one that does.

        The kernel gives the claim back when its process dies.
        """
        folder = self.pair_folder(id)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / _CLAIM) as file:
            yield Attempts(file)


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a lock on a file, made if it is not there; on a file system without locks, just open it."""
    with path.open("a+", encoding="utf-8") as file:
        lock(file)
        yield file
