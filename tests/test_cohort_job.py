# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cohorts import QUICK, as_it_was, here, make_rows, results, stamps, write_list

from monai_nodeo.apps.cohort.job import MOST_DEATHS, Job, register_pairs
from monai_nodeo.apps.cohort.storage import StorageError
from monai_nodeo.data.lists import RowError
from monai_nodeo.data.pair import PairError


@pytest.fixture
def row(tmp_path: Path) -> dict[str, Any]:
    for name in ("fixed", "moving"):
        (tmp_path / name).write_text(name)
    return {"id": "pair", "fixed": str(tmp_path / "fixed"), "moving": str(tmp_path / "moving")}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "out"), {}, "key")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts something in the place of the registration; the list tells for whom it was called."""

    def _register(act: Callable[[Path], Any] = lambda folder: None) -> list[str]:
        calls: list[str] = []

        def register_rows(job: Job, rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
            calls.append(" ".join(row["id"] for row in rows))
            return {row["id"]: act(Path(job.folder) / row["id"]) or {"id": row["id"]} for row in rows}

        monkeypatch.setattr("monai_nodeo.apps.cohort.job.register_rows", register_rows)
        return calls

    return _register


def register_pair(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    (result,) = register_pairs(job, [row])
    return result


def raising(error: BaseException) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        raise error

    return act


def test_second_call_finds_the_result(job, row, register):
    calls = register()
    assert register_pair(job, row) == register_pair(replace(job, run="later"), row)
    assert calls == ["pair"]


def test_failure_is_settled_for_this_run_only(job, row, register):
    calls = register(raising(PairError("bad image")))
    first, second = register_pair(job, row), register_pair(job, row)
    assert first == second
    assert (first["status"], first["reason"], first["row"]["reason"]) == ("failed", "bad image", "bad image")
    register_pair(replace(job, run="later"), row)
    assert calls == ["pair", "pair"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (RowError('there is no "moving".'), 'there is no "moving".'),
        (PermissionError(errno.EACCES, "Permission denied", "scan.nii.gz"), "PermissionError: "),
    ],
)
def test_failure_has_its_reason(job, row, register, error, reason):
    register(raising(error))
    bad = {"id": "pair", "error": error} if isinstance(error, RowError) else row
    result = register_pair(job, bad)
    assert result["status"] == "failed"
    assert result["reason"].startswith(reason)


def test_pair_whose_worker_dies_thrice_is_given_up(job, row, register):
    calls = register()
    with job.ledger.claimed("pair") as attempts:
        for _ in range(MOST_DEATHS - 1):
            attempts.begin(job.run)
        attempts.begin("another run")
    (tmp := Path(job.folder) / "copy").mkdir()  # after two deaths it is tried
    assert register_pair(replace(job, folder=str(tmp)), row)["status"] == "done"
    with job.ledger.claimed("pair") as attempts:
        attempts.begin(job.run)
    result = register_pair(job, row)
    assert calls == ["pair"]
    assert result["status"] == "failed"
    assert "died 3 times" in result["reason"]
    assert register_pair(replace(job, run="later"), row)["status"] == "done"


def test_interrupted_pair_is_no_death(job, row, register):
    for _ in range(MOST_DEATHS + 1):
        register(raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            register_pair(job, row)
    register()
    assert register_pair(job, row)["status"] == "done"


def test_older_files_go_before_the_new_attempt(job, row, register):
    register(lambda folder: (folder / "warped.nii.gz").touch())
    register_pair(job, row)
    seen: list[list[str]] = []
    register(lambda folder: seen.append([path.name for path in folder.iterdir() if not path.name.startswith(".")]))
    Path(row["moving"]).write_text("changed", encoding="utf-8")
    register_pair(job, row)
    assert seen == [[]]


def test_other_version_is_refused(job, row):
    with pytest.raises(ValueError, match="install the same on both"):
        register_pair(replace(job, version="0.0.0"), row)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_error_of_the_disk_ends_the_run(job, row, register, code):
    try:
        try:
            raise OSError(code, os.strerror(code))
        except OSError as inner:
            raise RuntimeError("writer failed") from inner
    except RuntimeError as outer:
        register(raising(outer))
    with pytest.raises(StorageError, match=r"out.*finished pairs are kept"):
        register_pair(job, row)
    assert results(Path(job.folder)) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, room for a few tiny pairs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
def test_full_and_read_only_disk_stop_the_command(small_disk, tmp_path):
    pairs = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 15))
    words = (pairs, "-o", small_disk / "out", *QUICK)
    with as_it_was():
        full = here(*words)
        kept = stamps(small_disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        read_only = here(*words)
        subprocess.run(["mount", "-o", "remount,rw,size=20m", str(small_disk)], check=True)
        roomy = here(*words)
    assert full.exit_code == 1
    assert "No space left on device" in full.stderr.splitlines()[-1], full.stderr
    assert "finished pairs are kept" in full.stderr.splitlines()[-1]
    assert 0 < len(kept) < 15
    assert read_only.exit_code == 1
    assert "Read-only file system" in read_only.stderr.splitlines()[-1], read_only.stderr
    assert roomy.exit_code == 0, roomy.stderr
    after = stamps(small_disk / "out")
    assert len(after) == 15
    assert kept.items() <= after.items()
