# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from grids import GRIDS, make_ddf
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.files import Displacement, Transform
from monai_nodeo.flows import Flow, ODESolver, RungeKutta, Solver, VelocityField, invert
from monai_nodeo.metrics import Certificate, Residual, certify_field, certify_flow, certify_transform
from monai_nodeo.metrics import certificate as certificate_module

SHAPES = [(9, 13), (9, 11, 13)]
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_kind = pytest.mark.parametrize("kind", GRIDS)


def voxels(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.indices(shape)).double()


def to_mm(shape: tuple[int, ...]) -> Tensor:
    """Voxels of 1, 2 and 3 mm."""
    return torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))[:, : len(shape)]


def nothing_wrong(certificate: Certificate) -> None:
    assert certificate.folded_cells == sum(certificate.folded_by_difference) == 0
    assert certificate.invertible
    assert certificate.verdict.startswith("Invertible: no cell folds by any difference, inverse within ")


@every_shape
def test_a_translation_changes_nothing(shape):
    found = certify_field(torch.full((len(shape), *shape), 1.5), to_mm(shape))
    nothing_wrong(found)
    assert found.cells == np.prod([n - 1 for n in shape])
    assert len(found.folded_by_difference) == {2: 4, 3: 10}[len(shape)]
    assert found.smallest_volume == found.largest_volume == (1.0, (0,) * len(shape))
    assert found.small_percent == found.large_percent == 0
    assert found.inverse.voxels_max < 1e-5
    assert found.solver_error is None
    assert found.file_error_voxels is None


@every_shape
@pytest.mark.parametrize("factor", [0.4, 0.9, 2.2])
def test_a_scaling_has_volumes_of_its_power(shape, factor):
    found = certify_field((factor - 1) * voxels(shape), to_mm(shape))
    nothing_wrong(found)
    volume = factor ** len(shape)
    assert found.smallest_volume[0] == pytest.approx(volume)
    assert found.largest_volume[0] == pytest.approx(volume)
    assert found.small_percent == (100 if volume < 0.25 else 0)
    assert found.large_percent == (100 if volume > 4 else 0)


@every_shape
def test_a_voxel_that_passes_its_neighbour_is_found_in_every_cell_around(shape):
    ddf = torch.zeros(len(shape), *shape)
    place = (4, 5, 6)[: len(shape)]
    ddf[(0, *place)] = 1.5  # the step to the next voxel is -0.5, the one before it 2.5
    found = certify_field(ddf, to_mm(shape))
    assert found.folded_cells == 2 ** (len(shape) - 1)
    assert found.folded_by_difference[: 2 ** len(shape)] == (1,) * 2 ** len(shape)
    assert found.smallest_volume == (-0.5, place)
    assert found.largest_volume == (2.5, (3, *place[1:]))
    assert found.small_percent == pytest.approx(100 / found.cells)
    assert not found.invertible
    assert found.verdict.startswith(f"Not invertible: {found.folded_cells} of {found.cells} cells fold, inverse ")
    assert found.verdict.endswith("; volumes change by -0.5 to 2.5.")


@every_kind
def test_a_field_of_another_tool_is_judged_by_its_fixed_point(kind):
    grid, ddf = GRIDS[kind], torch.from_numpy(make_ddf(GRIDS[kind]))
    ways = torch.tensor(grid.affine[:3, : grid.spatial_dims])
    inversion = invert(ddf)
    found = certify_field(ddf, ways)
    nothing_wrong(found)
    left = inversion.left[:, inversion.inside].double()
    lengths, in_mm = (torch.linalg.vector_norm(x, dim=0) for x in (left, ways @ left))
    assert found.inverse.voxels_mean == pytest.approx(lengths.mean().item())
    assert found.inverse.voxels_max == pytest.approx(lengths.max().item())
    assert found.inverse.mm_mean == pytest.approx(in_mm.mean().item())
    assert found.inverse.mm_max == pytest.approx(in_mm.max().item())
    assert certify_field(ddf, ways, inversion) == found
    (by_transform,) = certify_transform(Transform((Displacement(grid, ddf.numpy()),)))
    assert by_transform.inverse.mm_max == pytest.approx(found.inverse.mm_max, rel=1e-4)
    assert by_transform.verdict == found.verdict


def test_a_field_is_invertible_without_folds_and_within_a_tenth_of_a_voxel():
    found = certify_field(torch.zeros(2, 16, 12), to_mm((16, 12)))
    assert found.verdict == (
        "Invertible: no cell folds by any difference, inverse within 0 voxels; volumes change by 1 to 1."
    )
    far = replace(found, inverse=replace(found.inverse, voxels_quantile=0.11), solver_error=found.inverse)
    assert not far.invertible
    assert far.verdict == (
        "Not invertible: no cell folds by any difference, inverse within 0.11 voxels, solver error 0 voxels; volumes "
        "change by 1 to 1."
    )
    assert not replace(found, folded_cells=1).invertible
    assert certify_field(torch.full((2, 16, 12), torch.nan), to_mm((16, 12))).folded_cells == 15 * 11


@pytest.mark.parametrize("shape", [(9, 1), (9, 1, 13)])
def test_a_grid_without_cells_has_none(shape):
    found = certify_field(torch.zeros(len(shape), *shape), to_mm(shape))
    assert found.cells == found.folded_cells == 0
    assert found.smallest_volume == (1.0, (0,) * len(shape))


def flow_of(kind: str, factors: list[float], solver: Solver) -> Flow:
    """Of the velocity ``factor phi`` along each axis, on the nodes of the grid itself."""
    grid = GRIDS[kind]
    axes = [f * torch.linspace(-1, 1, n) for f, n in zip(factors, grid.spatial_shape, strict=False)]
    images = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    return Flow(VelocityField.of(images).double(), solver, grid, grid)


@every_kind
def test_a_flow_has_the_volumes_of_its_exponential_and_an_exact_inverse(kind):
    factors = [-0.3, -0.1, -0.2][: GRIDS[kind].spatial_dims]
    flow = flow_of(kind, factors, RungeKutta(8, 0.05))
    found = certify_flow(flow, flow.displacement())
    nothing_wrong(found)
    volume = np.exp(sum(factors))
    assert found.smallest_volume[0] == pytest.approx(volume, rel=1e-4)
    assert found.largest_volume[0] == pytest.approx(volume, rel=1e-4)
    assert found.solver_error.voxels_max < 1e-4
    assert found.inverse.voxels_max < 1e-4
    assert ", solver error " in found.verdict


@every_kind
def test_errors_of_solver_and_inverse_are_those_of_the_method(kind):
    """A step of Euler along one axis: 1 + a there, 1 - a back, and (1 + a / 2)^2 with half the step."""
    grid, a = GRIDS[kind], -0.4
    flow = flow_of(kind, [a, 0.0, 0.0], ODESolver("euler", 1))
    found = certify_flow(flow, flow.displacement())
    half, side = (grid.spatial_shape[0] - 1) / 2, grid.spacing[0]
    assert found.solver_error.voxels_max == pytest.approx(a**2 / 4 * half)
    assert found.inverse.voxels_max == pytest.approx(a**2 * half)
    assert found.inverse.mm_max == pytest.approx(a**2 * half * side)
    assert found.inverse.voxels_mean == pytest.approx(
        a**2 * half * np.abs(np.linspace(-1, 1, grid.spatial_shape[0])).mean()
    )
    assert not found.invertible


@every_kind
def test_a_lattice_of_voxels_stands_for_all(kind, monkeypatch):
    flow = flow_of(kind, [-0.4, 0.0, 0.0], ODESolver("euler", 1))
    whole = certify_flow(flow, flow.displacement())
    monkeypatch.setattr(certificate_module, "_VOXELS", 300)
    some = certify_flow(flow, flow.displacement())
    assert some.folded_cells == whole.folded_cells
    assert some.inverse.voxels_max < whole.inverse.voxels_max
    assert some.inverse.voxels_mean == pytest.approx(whole.inverse.voxels_mean, rel=0.15)


def test_a_solver_that_cannot_be_finer_leaves_its_error_open():
    flow = flow_of("plane", [-0.1, 0.0], lambda velocity, phi, times: ODESolver("rk4", 4)(velocity, phi, times))
    found = certify_flow(flow, flow.displacement())
    assert found.solver_error is None
    assert "solver error" not in found.verdict


def test_a_residual_counts_mm_along_the_axes():
    vectors = torch.zeros(2, 2000, dtype=torch.float64)
    vectors[:, 0] = torch.tensor([3.0, 4.0])
    vectors[:, 1] = torch.tensor([0.0, 1.0])
    found = Residual.of(vectors, to_mm((1, 1)))
    assert found == Residual(6 / 2000, 0.0, 5.0, pytest.approx((73**0.5 + 2) / 2000), 0.0, pytest.approx(73**0.5))
    assert Residual.of(vectors[:, :999], to_mm((1, 1))).voxels_quantile == 1.0  # 99.9 % of 999: all but the largest
    assert Residual.of(vectors[:, :0], to_mm((1, 1))) == Residual(*[0.0] * 6)


@every_shape
@pytest.mark.parametrize("known", [False, True])
def test_a_certificate_survives_json(shape, known):
    found = certify_field(smooth_ddf(shape, largest=6.0, sigma=2.0), to_mm(shape))
    if known:
        found = replace(found, solver_error=found.inverse, file_error_voxels=1e-7)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Certificate.from_dict(json.loads(text)) == found
    assert json.loads(text)["verdict"] == found.verdict
    assert json.loads(text)["invertible"] is found.invertible
