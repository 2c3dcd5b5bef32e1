# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import probes
import pytest
from cohorts import ROOT, as_it_was, environment, here, make_rows, table, write_list
from distributed import Client, LocalCluster

from monai_nodeo.apps.cohort import workers
from monai_nodeo.apps.cohort.job import Job
from monai_nodeo.apps.cohort.storage import StorageError
from monai_nodeo.apps.cohort.workers import ClusterError, ExistingCluster, LocalWorkers, run_on

# Dask closes sockets a little later than Python would like.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

JOB = Job("/nowhere", {}, "key")


@contextmanager
def cluster(workers: int = 2, threads: int = 1, **options: Any) -> Iterator[Client]:
    """Workers as threads of this process, so that what they run can be replaced."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=None, **options
        ) as local,
        Client(local) as client,
    ):
        yield client


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, Any], Any]], None]:
    return lambda act: monkeypatch.setattr(workers, "register_pairs", act)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"p{number}"} for number in range(count)]


def batches(count: int) -> list[list[dict[str, Any]]]:
    """Each row for itself."""
    return [[row] for row in rows(count)]


def test_every_pair_comes_back_and_few_wait_at_the_scheduler(task):
    task(lambda job, batch: [{"id": row["id"], "threads": job.threads} for row in batch])
    with cluster() as client:
        most = 0
        found = []
        for result in run_on(client, JOB, batches(100)):
            found.append(result["id"])
            most = max(most, len(client.cluster.scheduler.tasks))
            left = len(client.futures)
    assert sorted(found) == sorted(row["id"] for row in rows(100))
    assert most <= 4 + 4  # those that run or wait, and as many whose end is not yet forgotten
    assert left <= 4


def test_full_disk_of_a_worker_ends_the_run(task):
    def fill(job: Job, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise StorageError("no room")

    task(fill)
    with cluster() as client, pytest.raises(StorageError, match="no room"):
        list(run_on(client, JOB, batches(3)))


def test_workers_without_a_gpu_are_an_error_not_silence():
    with cluster() as client, pytest.raises(ClusterError, match=r"none of the 2 workers offers the resource GPU"):
        list(run_on(client, JOB, batches(1), needs_gpu=True))


def test_resource_is_used_where_it_is(task):
    task(lambda job, batch: batch)
    with cluster(resources={"GPU": 1}) as client:
        assert len(list(run_on(client, JOB, batches(5), needs_gpu=True))) == 5


def test_workers_with_threads_are_refused():
    with cluster(threads=2) as client, pytest.raises(ClusterError, match="start them with --nthreads 1"):
        list(run_on(client, JOB, batches(1)))


def test_no_worker_at_all_is_told(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)
    with cluster(workers=0) as client, pytest.raises(ClusterError, match="no worker for"):
        list(run_on(client, JOB, batches(1)))


def test_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(workers, "_CONNECT", 0.3)
    with pytest.raises(ClusterError, match="no Dask scheduler answers at tcp://127.0.0.1:9 "):
        list(ExistingCluster("tcp://127.0.0.1:9", None)(JOB, batches(1)))


def test_gpus_of_a_cluster_need_not_be_here(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_CONNECT", 0.3)
    pairs = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 1))
    with as_it_was():
        result = here(pairs, "-o", tmp_path / "out", "--device", "cuda", "--scheduler", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers at tcp://127.0.0.1:9 " in result.stderr


def test_each_worker_sees_its_gpu_before_torch_is_imported(monkeypatch, task):
    monkeypatch.setattr(workers, "_visible_gpus", lambda: ["3", "GPU-5"])
    task(probes.where)
    found = list(LocalWorkers(3, threads=3)(JOB, batches(18)))
    seen = {result["pid"]: result["CUDA_VISIBLE_DEVICES"] for result in found}
    assert sorted(seen.values()) == ["3", "3", "GPU-5"]  # the third shares the first GPU
    assert {(result["OMP_WAIT_POLICY"], result["OMP_NUM_THREADS"]) for result in found} == {("PASSIVE", "3")}
    assert not any(result["torch"] for result in found)


def test_pair_that_kills_its_worker_does_not_take_others_with_it(tmp_path, task):
    task(probes.die_at_p1)
    found = list(LocalWorkers(2, device="cpu")(Job(str(tmp_path), {}, "key"), batches(12)))
    assert {result["id"]: result["status"] for result in found} == {
        row["id"]: "failed" if row["id"] == "p1" else "done" for row in rows(12)
    }


def test_lost_scheduler_ends_the_run(tmp_path, task):
    task(probes.wait)
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    local = ["--scheduler-file", str(file), "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment(), "cwd": ROOT / "tests"}
    scheduler = subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *local], **quiet)
    worker = subprocess.Popen([*dask, "worker", *local, "--nthreads", "1", "--no-nanny"], **quiet)
    while not file.exists():
        time.sleep(0.05)
    found = ExistingCluster(None, str(file))(JOB, batches(50))
    next(found)
    scheduler.kill()
    try:
        with pytest.raises(ClusterError, match="the scheduler is gone; finished pairs are kept"):
            list(found)
    finally:
        worker.terminate()
        worker.wait(30)
        scheduler.wait(30)


@pytest.mark.long
def test_nothing_is_lost_or_done_twice_when_all_are_killed(tmp_path, monkeypatch):
    """The benchmark of 200 pairs, with a few tiny ones and without the part with a scheduler of its own."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    spec = spec_from_file_location("cohort_kills", ROOT / "benchmarks" / "cohort_kills.py")
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    pairs = write_list(tmp_path / "pairs.json", make_rows(tmp_path / "data", 20))
    words = ["--local-only", "--output", str(tmp_path / "kills"), "--kills", "1", "--set", "iterations=[3,3]"]
    with as_it_was():
        benchmark.main([str(pairs), *words], in_peace=lambda words: here(*words).exit_code)
    found = json.loads((tmp_path / "kills" / "kills.json").read_text(encoding="utf-8"))
    assert found["workers_killed"] == 1
    assert found["command_killed_while_running"]
    assert 5 < found["done_when_command_killed"] < 20
    assert found["status_of_last_run"] == 0
    assert found["complete"] == found["pairs"] == 20
    assert found["recomputed_after_result"] == []
    assert found["figures_as_in_quiet_run"]
    assert len(table(tmp_path / "kills" / "killed")) == 20
