# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs that are optimised together are what each is alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import PLANE, QUICK, as_it_was, here, make_rows, results, save_slice, stamps, table, write_list
from ignite.engine import Events
from synthetic import deformed_pair, quick_settings, smooth_image
from torch import Tensor, nn

from monai_nodeo.apps.cohort.job import Job, register_pairs
from monai_nodeo.data import Pair
from monai_nodeo.flows import ODESolver
from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration import DivergedError, PairInferer
from monai_nodeo.registration.inferer import pair_of_tensors

SHAPES = [(25, 21), (13, 17, 11)]
FEW: dict[str, Any] = {"iterations": (4, 3), "best_window": 50}


def pairs_of(shape: tuple[int, ...], count: int = 3) -> list[Pair]:
    return [pair_of_tensors(*deformed_pair(shape, seed)[:2]) for seed in range(count)]


def compare(pairs: list[Pair], settings: Any, groups: list[int] | None = None, **components: Any) -> None:
    """Each pair of a batch is what it is alone; the groups are how many are optimised together, by default all."""
    inferer = PairInferer(settings, handlers=(), **components)
    sizes: list[int] = []
    counting = PairInferer(settings, handlers=(lambda: _Counts(sizes),), **components)
    together = counting.register(pairs)
    assert sizes[:: len(settings.iterations)] == (groups or [len(pairs)])
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = inferer.register([pair])
        assert found.pair is pair
        torch.testing.assert_close(found.ddf, alone.ddf, rtol=0, atol=2e-3)
        torch.testing.assert_close(found.history, alone.history, rtol=1e-3, atol=1e-5)
        assert found.iterations == alone.iterations
        assert found.ddf.abs().max() > 0.01
        assert not folded_cells(found.ddf[None]).any()


class _Counts:
    """Notes how many pairs a trainer has."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda e: self.sizes.append(len(e.network.models)))


@pytest.mark.parametrize(
    ("changes", "components"),
    [
        ({}, {}),
        ({"solver": "midpoint", "keyframes": 2}, {}),
        ({"velocity": "coordinates"}, {}),
        ({"velocity": "nodeo", "bottleneck": 8, "iterations": (5,), "shrink_factors": (1,), "learning_rate": 0.02}, {}),
        ({}, {"solver": ODESolver("midpoint", 2, adjoint=True)}),
    ],
    ids=["lattice", "keyframes", "coordinates", "NODEO", "adjoint"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_of_a_batch_is_what_it_is_alone(shape, changes, components):
    if changes.get("velocity") == "nodeo":
        components = {"solver": ODESolver("euler", 2)}
    compare(pairs_of(shape), quick_settings(len(shape), **{**FEW, **changes}), **components)


class _Size(nn.Module):
    """A loss of somebody else: it knows no batches of pairs."""

    def forward(self, ddf: Tensor) -> Tensor:
        return ddf.square().mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_landmarks_and_losses_of_others(shape):
    dims = len(shape)
    pairs = pairs_of(shape, 2)
    gently = quick_settings(dims, **{**FEW, "iterations": (8, 8), "learning_rate": 0.1})
    with_all = []
    for pair in pairs:
        sides = {}
        for side in ("fixed", "moving"):
            scan = getattr(pair, side)
            points = torch.rand(5, 3, dtype=torch.float64) * (torch.tensor((*shape, 1)[:3]) - 1)
            sides[side] = replace(scan, mask=(scan.image > 0.2).float(), landmarks=points)
        with_all.append(replace(pair, **sides))
    compare(with_all, gently)
    compare(pairs, gently, loss=RegistrationLoss(nn.MSELoss(), ddf_terms={"size": (1e-4, _Size())}))


def test_pairs_that_are_alike_without_the_air_are_optimised_together():
    shape = (80, 112)
    pairs = []
    for number, (size, place) in enumerate([((32, 32), 4), ((32, 32), 20), ((48, 64), 16)]):
        fixed, moving = torch.zeros(2, 1, *shape)
        box = (0, *[slice(place, place + n) for n in size])
        fixed[box] = 0.2 + smooth_image(size, number)[0]
        moving[box] = 0.2 + smooth_image(size, number + 3)[0]
        pairs.append(pair_of_tensors(fixed, moving))
    compare(pairs, quick_settings(2, **FEW), groups=[2, 1])


def test_pair_that_diverges_is_found():
    class Explodes(nn.Module):
        """For one of the pairs."""

        calls = 0

        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            Explodes.calls += 1
            return (pred - target).square().mean() * (torch.inf if Explodes.calls == 2 else 1)

    with pytest.raises(DivergedError):
        PairInferer(quick_settings(2), loss=RegistrationLoss(Explodes())).register(pairs_of(SHAPES[0], 2))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Puts something in the place of the registration; the list tells which pairs were together."""

    def _calls(fatal: str | None = None) -> list[list[str]]:
        seen: list[list[str]] = []

        def register_rows(job: Job, rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
            seen.append([row["id"] for row in rows])
            if fatal in seen[-1]:
                raise DivergedError(3)
            return {row["id"]: {"id": row["id"]} for row in rows}

        monkeypatch.setattr("monai_nodeo.apps.cohort.job.register_rows", register_rows)
        return seen

    return _calls


def four_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [{"id": f"p{number}", "fixed": str(folder / "f"), "moving": str(folder / "m")} for number in range(4)]
    for name in ("f", "m"):
        (folder / name).touch()
    return rows


def test_pair_at_fault_takes_no_other_with_it(tmp_path, calls):
    seen = calls(fatal="p2")
    job = Job(str(tmp_path / "out"), {}, "key")
    found = register_pairs(job, four_rows(tmp_path))
    assert [result["status"] for result in found] == ["done", "done", "failed", "done"]
    assert "not finite" in found[2]["reason"]
    assert seen == [["p0", "p1", "p2", "p3"], ["p0"], ["p1"], ["p2"], ["p3"]]


def test_what_is_done_is_left_out_and_whose_worker_died_is_alone(tmp_path, calls):
    job, rows = Job(str(tmp_path / "out"), {}, "key"), four_rows(tmp_path)
    calls()
    register_pairs(job, rows[1:2])
    with job.ledger.claimed("p2") as attempts:
        attempts.begin(job.run)
    seen = calls()
    found = register_pairs(job, rows)
    assert seen == [["p0", "p3"], ["p2"]]
    assert [result["id"] for result in found] == ["p0", "p1", "p2", "p3"]
    register_pairs(replace(job, run="later"), rows)
    assert len(seen) == 2


def test_cohort_in_batches_is_the_cohort_one_by_one(tmp_path):
    rows = make_rows(tmp_path / "data", 6)
    rows[1]["moving"] = save_slice(tmp_path / "nan.nii.gz", np.full(PLANE, np.nan))
    for side in ("fixed", "moving"):  # of another shape
        rows[4][side] = save_slice(tmp_path / f"{side}.nii.gz", smooth_image((30, 36), len(side))[0].numpy())
    pairs = write_list(tmp_path / "pairs.json", rows)
    with as_it_was():
        together = here(pairs, "-o", tmp_path / "together", *QUICK, "--batch", "4")
        alone = here(pairs, "-o", tmp_path / "alone", *QUICK)
        kept = stamps(tmp_path / "together")
        again = here(pairs, "-o", tmp_path / "together", *QUICK)
    assert together.exit_code == alone.exit_code == again.exit_code == 3, together.output
    found, expected = table(tmp_path / "together"), table(tmp_path / "alone")
    assert [row["status"] for row in found.values()] == ["done", "failed", "done", "done", "done", "done"]
    for id, row in found.items():
        for name, value in row.items():
            if name == "reason" or not value.replace(".", "").isdigit():
                assert value == expected[id][name]
            else:
                assert float(value) == pytest.approx(float(expected[id][name]), rel=1e-3)
    files = {id: sorted(result["files"]) for id, result in results(tmp_path / "together").items()}
    assert files == {id: sorted(result["files"]) for id, result in results(tmp_path / "alone").items()}
    assert {id for id, stamp in stamps(tmp_path / "together").items() if stamp == kept[id]} == set(found) - {"p01"}
