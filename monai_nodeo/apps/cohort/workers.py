# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Workers of Dask: processes of this machine, or a cluster that is there.

A task is a batch of pairs, mostly of one, and returns small dicts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from monai_nodeo.apps.cohort.job import Job, register_pairs
from monai_nodeo.extras import extra

with extra("cohort", "workers"):
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster, wait
    from distributed.comm.core import CommClosedError

__all__ = ["ClusterError", "ExistingCluster", "LocalWorkers", "run_on"]

GPU = "GPU"  # name of the resource of a worker that has one
_PATIENCE = 300.0  # seconds without any worker
_LOOK_EVERY = 5.0
_CONNECT = 10.0
_TASKS_A_WORKER = 2  # one that runs, one that waits: no more are known to the scheduler, however many pairs there are

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]


class ClusterError(OSError):
    """A cluster that cannot do the work. The message says what to do."""


@dataclass(frozen=True)
class LocalWorkers:
    """Processes on this machine, started for a run and ended with it; a worker that dies is replaced.

    Args:
        workers: their number.
        threads: of each, by default the cores are shared out.
        device: "cpu", "cuda" or None, a GPU if there is one. Each worker sees one GPU and registers one pair at a time;
            with more workers than GPUs, those of a GPU load and write while another one computes.
    """

    workers: int
    threads: int | None = None
    device: str | None = None

    def __call__(self, job: Job, batches: Sequence[Rows]) -> Iterator[dict[str, Any]]:
        _silence()
        threads = self.threads or max(1, CPU_COUNT // self.workers)
        gpus = [] if self.device == "cpu" else _visible_gpus()
        shared = cycle(gpus or [None])
        specs = {number: self._worker(threads, gpu) for number, gpu in zip(range(self.workers), shared, strict=False)}
        scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0", "host": "127.0.0.1"}}
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 10 * len(batches)}),  # the ledger counts deaths
            SpecCluster(specs, scheduler, silence_logs=logging.CRITICAL) as cluster,
            Client(cluster) as client,
        ):
            yield from run_on(client, replace(job, threads=threads), batches, needs_gpu=bool(gpus))

    @staticmethod
    def _worker(threads: int, gpu: str | None) -> dict[str, Any]:
        # Set before torch is imported there: which GPU it sees, and that its threads sleep while they wait.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "env": environment}
        options |= {"silence_logs": logging.CRITICAL}
        return {"cls": Nanny, "options": options | {"resources": {} if gpu is None else {GPU: 1}}}


@dataclass(frozen=True)
class ExistingCluster:
    """A cluster that somebody else started and that goes on afterwards.

    Args:
        address: of its scheduler, or None.
        scheduler_file: that the scheduler wrote, or None.
        threads: of a pair, None: what the worker was started with.
        needs_gpu: use workers with the resource GPU only.
    """

    address: str | None
    scheduler_file: str | None
    threads: int | None = None
    needs_gpu: bool = False

    def __call__(self, job: Job, batches: Sequence[Rows]) -> Iterator[dict[str, Any]]:
        _silence()
        where = self.address or self.scheduler_file
        try:
            client = Client(self.address, scheduler_file=self.scheduler_file, timeout=_CONNECT)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {where} ({error}); start it, or check the address."
            ) from error
        with client:
            yield from run_on(client, replace(job, threads=self.threads), batches, needs_gpu=self.needs_gpu)


def run_on(client: Client, job: Job, batches: Sequence[Rows], needs_gpu: bool = False) -> Iterator[dict[str, Any]]:
    """Register pairs on the workers of a cluster.

    Args:
        client: of the cluster.
        job: of the run.
        batches: pairs, those of a task together.
        needs_gpu: use workers with the resource GPU only.

    Raises:
        StorageError: from a worker, when the results cannot be written.
        ClusterError: when there are no workers for a long time, or unsuitable ones, or the scheduler is lost.
    """
    waiting = iter(batches)
    running: dict[Future, Rows] = {}
    resources = {GPU: 1} if needs_gpu else {}
    submitted = 0
    try:
        while True:
            room = _TASKS_A_WORKER * _suitable_workers(client, needs_gpu) - len(running)
            for batch in islice(waiting, max(0, room)):
                running[_submit(client, job, batch, submitted, resources)] = batch
                submitted += 1
            if not running:
                return
            for future in _finished(list(running)):
                batch = running.pop(future)
                if isinstance(future.exception(), KilledWorker):  # by its neighbours, perhaps: the ledger knows
                    running[_submit(client, job, batch, submitted, resources)] = batch
                    submitted += 1
                else:
                    yield from future.result()
    finally:
        client.cancel(list(running))


def _submit(client: Client, job: Job, batch: Rows, number: int, resources: Mapping[str, int]) -> Future:
    key = f"{batch[0]['id']}-{job.run}-{number}"  # never that of an earlier run, whose result a scheduler may remember
    return client.submit(register_pairs, job, batch, key=key, pure=False, resources=resources)


def _finished(futures: list[Future]) -> list[Future]:
    """Those that have ended since, perhaps none yet."""
    try:
        return list(wait(futures, timeout=_LOOK_EVERY, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []
    except CancelledError as error:
        raise _lost() from error


def _lost() -> ClusterError:
    return ClusterError(
        "the scheduler is gone; finished pairs are kept: run the same command again, with a new one if it was yours."
    )


def _suitable_workers(client: Client, needs_gpu: bool) -> int:
    """How many workers can take pairs; waits for the first.

    Raises:
        ClusterError: when none comes, or those that are there never can.
    """
    started = time.monotonic()
    told = False
    while not (workers := _workers(client)):
        if time.monotonic() - started > _PATIENCE:
            raise ClusterError(
                f"no worker for {_PATIENCE:.0f} s; finished pairs are kept: start workers and run again."
            )
        if not told:
            logger.warning("waiting for workers")
            told = True
        time.sleep(1)
    many = [f"{worker['nthreads']} at {address}" for address, worker in workers.items() if worker["nthreads"] > 1]
    if many:
        raise ClusterError(
            f"workers with several threads ({', '.join(many[:3])}): pairs would share torch's settings; start them "
            "with --nthreads 1, and give the threads of a pair by --threads."
        )
    suitable = [worker for worker in workers.values() if not needs_gpu or worker["resources"].get(GPU, 0) >= 1]
    if not suitable:
        raise ClusterError(
            f"none of the {len(workers)} workers offers the resource {GPU}; start one for each GPU with "
            f'--resources "{GPU}=1" and its CUDA_VISIBLE_DEVICES, or give --device cpu.'
        )
    return len(suitable)


def _workers(client: Client) -> dict[str, Any]:
    try:
        if client.status != "running":
            raise _lost()
        return dict(client.scheduler_info(n_workers=-1)["workers"])
    except CommClosedError as error:
        raise _lost() from error


def _silence() -> None:
    """Dask reports on its own business, and what goes wrong there is told here in the user's words."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _visible_gpus() -> list[str]:
    """Names of the CUDA devices that this process sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(number) for number in range(torch.cuda.device_count())]
    return named.split(",")[: len(devices)] if named else devices
