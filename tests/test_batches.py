# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs that are optimised together are what each is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import PLANE, QUICK, as_it_was, here, make_rows, results, save_slice, stamps, table, write_list
from synthetic import deformed_pair, smooth_image
from torch import Tensor, nn

from monai_nodeo.cohort import pair_run
from monai_nodeo.cohort.task import Job, register_pairs
from monai_nodeo.data.dataset import PairBatches
from monai_nodeo.flows import Coordinates, EulerianVelocity, Lattice, NODEONet, VelocityModel
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.geometry.folding import folded_cells
from monai_nodeo.losses import (
    FoldingLoss,
    IntensityLoss,
    LocalNCCLoss,
    RegistrationLoss,
    SmoothnessLoss,
    VelocityMagnitudeLoss,
)
from monai_nodeo.losses.correlation_ratio import LocalCorrelationRatioLoss, MappedIntensityLoss
from monai_nodeo.losses.mind import MINDSSCLoss
from monai_nodeo.registration.handlers import BestField
from monai_nodeo.registration.inferer import PairInferer
from monai_nodeo.registration.trainer import DivergedError

# MONAI says of every config file, whoever wrote it, that parsing it runs code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

SHAPES = [(25, 21), (13, 17, 11)]
FEW: dict[str, Any] = {"iterations": (4, 3), "shrink_factors": (2, 1), "handlers": (BestField,)}


# Losses


@pytest.mark.parametrize(
    "make",
    [
        lambda dims: LocalNCCLoss(dims, 5),
        lambda dims: LocalNCCLoss(dims, 5, "sum"),
        lambda dims: IntensityLoss(),
        lambda dims: MINDSSCLoss(dims),
        lambda dims: LocalCorrelationRatioLoss(dims, 5),
        lambda dims: MappedIntensityLoss(),
    ],
    ids=["NCC", "NCC sum", "intensity", "MIND", "correlation ratio", "mapped"],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_image_loss_of_each_is_that_of_it_alone(shape, weighted, make) -> None:
    loss, spacing = make(len(shape)), (1.0, 1.5, 2.0)[: len(shape)]
    pred, target, weight = torch.rand(3, 3, 1, *shape, dtype=torch.float64)
    pred.requires_grad_()
    weights = [w[None] if weighted else None for w in weight]
    alone = torch.stack([
        loss(p[None], t[None], w, spacing) for p, t, w in zip(pred, target, weights, strict=True)
    ])  # fmt: skip
    together = loss.of_each(pred, target, weight if weighted else None, spacing)
    check_values_and_gradients(together, alone, pred)


@pytest.mark.parametrize(
    "loss", [FoldingLoss(), FoldingLoss(reduction="sum"), SmoothnessLoss(), VelocityMagnitudeLoss()]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_field_loss_of_each_is_that_of_it_alone(shape, loss) -> None:
    spacing = (1.0, 1.5, 2.0)[: len(shape)]
    ddf = torch.randn(3, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    alone = torch.stack([loss(item[None], spacing) for item in ddf])
    check_values_and_gradients(loss.of_each(ddf, spacing), alone, ddf)


def check_values_and_gradients(together: Tensor, alone: Tensor, x: Tensor) -> None:
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)  # each gradient goes its own way
    (found,), (expected,) = (torch.autograd.grad(values @ factors, x) for values in (together, alone))
    torch.testing.assert_close(found, expected)


# Registrations


def pairs_of(shape: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor]:
    """(count, 1, *shape) each."""
    images = [deformed_pair(shape, seed)[:2] for seed in range(count)]
    fixed, moving = (torch.stack(list(side)) for side in zip(*images, strict=True))
    return fixed, moving


def compare(inferer: PairInferer, network: VelocityModel, fixed: Tensor, moving: Tensor, **more: Tensor) -> None:
    inferer(fixed, network, moving, **more)
    together = inferer.registrations
    for number, found in enumerate(together):
        one = slice(number, number + 1)
        inferer(fixed[one], network, moving[one], **{key: value[one] for key, value in more.items()})
        (alone,) = inferer.registrations
        torch.testing.assert_close(found.ddf, alone.ddf, rtol=0, atol=2e-3)
        torch.testing.assert_close(found.history, alone.history, rtol=1e-3, atol=1e-5)
        assert found.iterations == alone.iterations
        assert found.ddf.abs().max() > 0.01
        assert not folded_cells(found.ddf[None]).any()


def eulerian(dims: int, **options: Any) -> EulerianVelocity:
    return EulerianVelocity(dims, 8, **options)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (eulerian, {}),
        (lambda dims: eulerian(dims, parametrisation=Lattice((8,) * dims, keyframes=2)), {}),
        (lambda dims: eulerian(dims, parametrisation=Coordinates((8,) * dims, channels=8)), {}),
        (
            lambda dims: NODEONet(dims, scale=0.1),
            {"iterations": (5,), "shrink_factors": (1,), "solver": ODESolver("euler", 2)},
        ),
        (eulerian, {"solver": ODESolver("midpoint", 2, adjoint=True)}),
    ],
    ids=["lattice", "keyframes", "coordinates", "NODEO", "adjoint"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_of_a_batch_is_what_it_is_alone(shape, network, options) -> None:
    dims = len(shape)
    if isinstance(network(dims), NODEONet):
        options = options | {"optimizer": lambda p: torch.optim.Adam(p, lr=0.02)}
    compare(PairInferer(dims, **{**FEW, **options}), network(dims), *pairs_of(shape))


class _Size(nn.Module):
    """A loss of somebody else: it knows no batches of pairs."""

    def forward(self, ddf: Tensor) -> Tensor:
        return ddf.square().mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_landmarks_and_losses_of_others(shape) -> None:
    dims = len(shape)
    fixed, moving = pairs_of(shape, 2)
    masks = {name: torch.rand(2, 1, *shape) for name in ("fixed_mask", "moving_mask")}
    landmarks = torch.rand(2, 5, 2, dims) * (min(shape) - 1)
    gently = {**FEW, "iterations": (8, 8), "optimizer": lambda p: torch.optim.Adam(p, lr=0.1)}
    compare(PairInferer(dims, **gently), eulerian(dims), fixed, moving, **masks, landmarks=landmarks)
    loss = RegistrationLoss(nn.MSELoss(), ddf_terms={"size": (1e-4, _Size())})
    compare(PairInferer(dims, loss, **gently), eulerian(dims), fixed, moving)


def test_boxes_without_air_that_differ_in_size_or_only_in_place() -> None:
    shape = (80, 112)
    fixed, moving = torch.zeros(2, 3, 1, *shape)
    for number, (size, place) in enumerate([((32, 32), 4), ((32, 32), 20), ((48, 64), 16)]):
        box = (0, *[slice(place, place + n) for n in size])
        fixed[(number, *box)] = 0.2 + smooth_image(size, number)[0]
        moving[(number, *box)] = 0.2 + smooth_image(size, number + 3)[0]
    compare(PairInferer(2, **FEW), eulerian(2), fixed, moving)


def test_pair_that_diverges_is_found() -> None:
    fixed, moving = pairs_of(SHAPES[0])
    moving[1] = torch.inf
    with pytest.raises(DivergedError):
        PairInferer(2, **FEW)(fixed, eulerian(2), moving)


# Lists


def test_items_that_are_alike_and_follow_each_other_are_a_batch() -> None:
    def item(number: int, *shape: int, **more: Any) -> dict[str, Any]:
        return {"id": number, "fixed": torch.zeros(1, *shape), **more}

    items = [
        item(0, 3, 4),
        item(1, 3, 4),
        item(2, 3, 4),
        item(3, 3, 5),
        item(4, 3, 5, mask=torch.ones(1)),
        item(5, 3, 5),
    ]

    def ids(size: int) -> list[list[int]]:
        return [[found["id"] for found in batch] for batch in PairBatches(items, size)]  # type: ignore[arg-type]

    assert ids(1) == [[0], [1], [2], [3], [4], [5]]
    assert ids(2) == [[0, 1], [2], [3], [4], [5]]
    assert ids(9) == [[0, 1, 2], [3], [4], [5]]
    with pytest.raises(ValueError, match="batch_size is 0"):
        PairBatches(items, 0)  # type: ignore[arg-type]


# Cohorts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Puts something in the place of the registration; the list tells which pairs were together."""

    def _calls(fatal: str | None = None) -> list[list[str]]:
        seen: list[list[str]] = []

        def run_pairs(config: Any, rows: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, str]]:
            seen.append([row["id"] for row in rows])
            if fatal in seen[-1]:
                raise DivergedError(3)
            return {row["id"]: {"status": "done"} for row in rows}

        monkeypatch.setattr(pair_run, "run_pairs", run_pairs)
        return seen

    return _calls


def four_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [{"id": f"p{number}", "fixed": str(folder / "f"), "moving": str(folder / "m")} for number in range(4)]
    for name in ("f", "m"):
        (folder / name).touch()
    return rows


def test_pair_at_fault_takes_no_other_with_it(tmp_path: Path, calls) -> None:
    seen = calls(fatal="p2")
    job = Job(str(tmp_path / "out"), {}, "key", "run")

    found = register_pairs(job, four_rows(tmp_path))

    assert [result["status"] for result in found] == ["done", "done", "failed", "done"]
    assert "not finite" in found[2]["reason"]
    assert seen == [["p0", "p1", "p2", "p3"], ["p0"], ["p1"], ["p2"], ["p3"]]


def test_what_is_done_is_left_out_and_whose_worker_died_is_alone(tmp_path: Path, calls) -> None:
    job, rows = Job(str(tmp_path / "out"), {}, "key", "run"), four_rows(tmp_path)
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


def test_cohort_in_batches_is_the_cohort_one_by_one(tmp_path: Path) -> None:
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
