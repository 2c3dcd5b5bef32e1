# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts import (
    PLANE,
    QUICK,
    ROOT,
    as_it_was,
    command,
    environment,
    here,
    make_rows,
    results,
    save_slice,
    stamps,
    table,
    write_list,
)

from monai_nodeo.apps.cohort.keys import settings_key
from monai_nodeo.registration import Settings


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with as_it_was():
        yield


def run(*words: object, status: int = 0) -> str:
    result = here(*words)
    assert result.exit_code == status, result.output
    return result.stdout


def test_only_what_is_new_failed_or_changed_runs(tmp_path):
    rows = make_rows(tmp_path / "data", 4)
    rows[3]["moving"] = str(tmp_path / "data" / "late.nii.gz")
    pairs, out = write_list(tmp_path / "pairs.json", rows), tmp_path / "out"
    words = (pairs, "-o", out, *QUICK)
    assert "4 pairs: 3 done, 1 failed" in run(*words, status=3)
    first = stamps(out)
    shutil.copy(rows[0]["moving"], rows[3]["moving"])  # what was missing is there
    save_slice(Path(rows[1]["fixed"]), np.random.default_rng(0).uniform(size=PLANE))  # what was done has changed
    os.utime(rows[2]["fixed"])  # this has not
    said = run(*words)
    second = stamps(out)
    assert "4 pairs: 4 done, 0 failed" in said
    assert {id for id in first if first[id] == second[id]} == {"p00", "p02"}
    assert list(table(out)) == ["p00", "p01", "p02", "p03"]
    assert run(*words) == said
    assert stamps(out) == second
    run(pairs, "-o", out, *QUICK, "--set", "learning_rate=0.3")
    third = stamps(out)
    assert not second.items() & third.items()


def test_one_pair_in_ten_is_broken(tmp_path):
    rows = make_rows(tmp_path / "data", 20)
    truncated, not_a_number, volume = (tmp_path / f"{name}.nii.gz" for name in ("truncated", "nan", "volume"))
    truncated.write_bytes(Path(rows[0]["moving"]).read_bytes()[:200])
    save_slice(not_a_number, np.full(PLANE, np.nan))
    nib.save(nib.Nifti1Image(np.ones((*PLANE, 9), np.float32), np.eye(4)), volume)
    broken = {3: truncated, 8: not_a_number, 13: volume, 18: tmp_path / "missing.nii.gz"}
    for number, path in broken.items():
        rows[number]["moving"] = str(path)
    rows[5] = {"fixed": rows[5]["fixed"]}

    said = run(write_list(tmp_path / "pairs.json", rows), "-o", tmp_path / "out", *QUICK, status=3)

    found = table(tmp_path / "out")
    assert len(found) == 20
    failed = {id: row["reason"] for id, row in found.items() if row["status"] == "failed"}
    assert set(failed) == {"p03", "p08", "p13", "p18", "row_6"}
    for number, path in broken.items():
        assert str(path) in failed[f"p{number:02}"]
    assert '"moving"' in failed["row_6"]
    assert "20 pairs: 15 done, 5 failed" in said
    assert all(reason in said for reason in failed.values())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert {entry["id"]: entry["reason"] for entry in summary["failures"]} == failed
    values = [float(row["similarity_after"]) for row in found.values() if row["status"] == "done"]
    figure = summary["figures"]["similarity_after"]
    assert figure["mean"] == pytest.approx(np.mean(values))
    assert figure["sd"] == pytest.approx(np.std(values, ddof=1))
    assert figure["worst"][0]["value"] == max(values)


def test_shards_share_the_work_and_the_table(tmp_path):
    pairs, out = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 5)), tmp_path / "out"
    assert "3 done, 0 failed, 2 not run yet" in run(pairs, "-o", out, *QUICK, "--shard", "1/2")
    first = stamps(out)
    assert "5 done, 0 failed;" in run(pairs, "-o", out, *QUICK, "--shard", "2/2")
    assert set(first) == {"p00", "p02", "p04"}
    assert first.items() <= stamps(out).items()
    assert len(table(out)) == 5


def test_pages_are_made(tmp_path):
    quick = [word for word in QUICK if word != "--no-report"]
    pairs = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 1))
    run(pairs, "-o", tmp_path / "out", *quick)
    assert (tmp_path / "out" / "p00" / "report.html").exists()
    assert "p00" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_command_that_a_batch_system_ends_goes_on_later(tmp_path):
    pairs, out = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 20)), tmp_path / "out"
    running = subprocess.Popen(command(pairs, "-o", out, *QUICK), env=environment(), stderr=subprocess.PIPE, text=True)
    while len(stamps(out)) < 2:
        time.sleep(0.02)
        assert running.poll() is None
    running.terminate()
    said = running.communicate(timeout=60)[1]
    kept = stamps(out)
    assert running.returncode == 130, said
    assert "run the same command to go on" in said
    assert 2 <= len(kept) < 20
    assert set(table(out)) == set(kept)
    assert not list(out.glob("*/.*.*/"))
    run(pairs, "-o", out, *QUICK)
    assert kept.items() <= stamps(out).items()
    assert len(table(out)) == 20


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give PAIRS, or --fixed"),
        (["pairs.json", "--fixed", "f"], "give PAIRS, or --fixed"),
        (["--fixed", "f"], "give PAIRS, or --fixed"),
        (["pairs.json", "--shard", "3/2"], "no share like 3/8"),
        (["pairs.json", "--shard", "0/2"], "no share like 3/8"),
        (["pairs.json", "--workers", "0"], "not in the range"),
        (["pairs.json", "--workers", "2", "--scheduler", "tcp://a:1"], "--workers and --scheduler exclude each other"),
        (["nowhere.json"], "Error: nowhere.json: the data list cannot be read"),
        (["unreadable.json"], "no fixed image of the list can be read"),
        (["pairs.json", "--set", "iteration=3"], "did you mean 'iterations'?"),
        (["pairs.json", "--set", "iterations=[1,2,3]"], "need one number a level"),
    ],
)
def test_mistake_is_told_before_anything_runs(tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 1))
    write_list(tmp_path / "unreadable.json", [{"fixed": "f", "moving": "m"}])
    result = here(*words, "-o", "out")
    assert result.exit_code in (1, 2)
    assert problem in result.stderr
    assert not results(tmp_path / "out")


def test_key_is_that_of_the_results(tmp_path):
    start = tmp_path / "start.mat"
    start.write_text("one")

    def key(**changes: object) -> str:
        return settings_key(Settings.preset("fast", 2, **changes).to_dict())

    assert key() == key(cuda_graph=False)
    assert len({key(), key(seed=1), key(iterations=[99, 13]), key(num_steps=4), key(initial_transform="affine")}) == 5
    aligned = key(initial_transform=str(start))
    start.write_text("two")
    assert aligned != key(initial_transform=str(start))


def test_many_finished_rows_are_skipped_without_torch(tmp_path):
    rows = make_rows(tmp_path / "data", 1)
    pairs, out = write_list(tmp_path / "pairs.json", rows), tmp_path / "out"
    run(pairs, "-o", out, *QUICK)
    (result,) = results(out).values()
    ids = [f"p{number:05}" for number in range(2000)]
    for id in ids:
        (out / id).mkdir()
        (out / id / "result.json").write_text(json.dumps(result | {"id": id, "row": result["row"] | {"id": id}}))
    write_list(pairs, [{**rows[0], "id": id} for id in ids])
    words = ["cohort", str(pairs), "-o", str(out), *QUICK]
    call = f"from monai_nodeo.apps.cli import main; main({words}, standalone_mode=False)"
    code = f"import sys; {call}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    first, *_, torch = shown.stdout.splitlines()
    assert first.startswith("2000 pairs: 2000 done, 0 failed")
    assert torch == "False", shown.stderr
