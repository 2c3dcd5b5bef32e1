# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cohorts import ROOT, environment

from monai_nodeo.apps.cohort.inputs import fingerprints, same_inputs
from monai_nodeo.apps.cohort.ledger import DONE, Ledger

Row = dict[str, str]


@pytest.fixture
def row(tmp_path: Path) -> Row:
    for name in ("fixed", "moving"):
        (tmp_path / f"{name}.nii.gz").write_bytes(name.encode())
    return {"id": "pair", **{name: str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")}}


def record(ledger: Ledger, row: Row, **files: str) -> None:
    folder = ledger.pair_folder(row["id"])
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    ledger.write(row["id"], {"status": DONE, "run": "first", "inputs": fingerprints(row), "row": {"id": row["id"]}})


def touch(row: Row) -> None:
    os.utime(row["moving"], (1, 1))


def move(row: Row) -> None:
    row["moving"] = shutil.copy(row["moving"], row["moving"].replace("moving", "copy"))


def rewrite(row: Row) -> None:
    Path(row["moving"]).write_bytes(b"MOVING")  # of the same size


def rewrite_at_once(row: Row) -> None:
    """Other content of the same size and time under another name, as archives unpack it."""
    stat = os.stat(row["moving"])
    move(row)
    rewrite(row)
    os.utime(row["moving"], ns=(stat.st_atime_ns, stat.st_mtime_ns))


def grow(row: Row) -> None:
    Path(row["moving"]).write_bytes(b"more than before")


def remove(row: Row) -> None:
    Path(row["moving"]).unlink()


def add_label(row: Row) -> None:
    row["fixed_label"] = row["fixed"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda row: None, True),
        (touch, True),
        (move, True),
        (rewrite, False),
        (rewrite_at_once, False),
        (grow, False),
        (remove, False),
        (add_label, False),
    ],
)
def test_content_counts(row, change, same):
    recorded = fingerprints(row)
    change(row)
    assert same_inputs(recorded, row) is same


def test_missing_input_is_never_the_same(row):
    Path(row["fixed"]).unlink()
    recorded = fingerprints(row)
    assert recorded["fixed"] is None
    assert not same_inputs(recorded, row)


@pytest.mark.parametrize(
    ("path", "part"),
    [("scan.mhd", "scan.raw"), ("scan.hdr", "scan.img"), ("series", "series/2.dcm"), ("series#3", "series/2.dcm")],
)
def test_voxels_beside_the_header_count(tmp_path, path, part):
    (tmp_path / "series").mkdir()
    for name in ("scan.mhd", "scan.raw", "scan.hdr", "scan.img", "series/1.dcm", "series/2.dcm", "scanner.raw"):
        (tmp_path / name).write_text(name)
    row = {"fixed": str(tmp_path / path)}
    recorded = fingerprints(row)
    (tmp_path / "scanner.raw").write_text("of another image")
    assert same_inputs(recorded, row)
    (tmp_path / part).write_text(part.upper())
    os.utime(tmp_path / part, (1, 1))
    assert not same_inputs(recorded, row)


def test_result_is_current_for_its_files_and_settings(tmp_path, row):
    ledger = Ledger(tmp_path, "key")
    assert ledger.finished(row) is None
    record(ledger, row)
    assert ledger.finished(row) is not None
    assert Ledger(tmp_path, "other").finished(row) is None
    grow(row)
    assert ledger.finished(row) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "done"}'])
def test_file_of_something_else_is_no_result(tmp_path, row, text):
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "result.json").write_text(text)
    assert Ledger(tmp_path, "key").finished(row) is None


def test_discard_takes_what_the_ledger_made(tmp_path, row):
    ledger, folder = Ledger(tmp_path, "key"), tmp_path / "pair"
    record(ledger, row, **{"warped.nii.gz": "old"})
    (folder / "notes.txt").write_text("of the user")
    (folder / "raw").mkdir()
    (folder / "raw" / "scan.nii.gz").write_text("of the user")
    killed = folder / ".warped.nii.gz.x1y2z3"
    killed.mkdir()
    (killed / "warped.nii.gz").write_text("half")
    ledger.discard("pair")
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "raw"]
    assert (folder / "raw" / "scan.nii.gz").exists()


def test_claim_is_for_one_process_and_ends_with_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from monai_nodeo.apps.cohort.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1]), 'key').claimed('pair') as attempts:\n"
        "    attempts.begin('run'); print('claimed', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, env=environment(), text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    time.sleep(0.2)
    killed_at = time.monotonic()
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {holder.pid}"])
    with Ledger(tmp_path, "key").claimed("pair") as attempts:
        waited = time.monotonic() - killed_at
        counts = attempts.count("run"), attempts.count("another run")
        attempts.end()
        after = attempts.count("run")
    killer.wait()
    holder.wait()
    holder.stdout.close()
    assert waited > 0.4
    assert counts == (1, 0)
    assert after == 0
