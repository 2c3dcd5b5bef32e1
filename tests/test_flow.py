# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import copy
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grids import CORONAL, FLIPPED, GRIDS, IN_PLANE, PLANE, SLICE, VOLUME
from safetensors.torch import load, save
from scipy.linalg import expm
from synthetic import smooth_ddf
from torch import Tensor
from torch.autograd import gradcheck

from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import (
    EulerianVelocity,
    Flow,
    FlowFileError,
    NODEONet,
    ODESolver,
    RungeKutta,
    ScalingAndSquaring,
    TrapezoidalRule,
    VelocityField,
    VelocityModel,
)

NODES = {"volume": (9, 11, 13), "slice": (9, 13), "plane": (9, 13)}
OTHER = {  # grids of another place, resolution and direction
    "volume": ImageGrid(FLIPPED, (5, 7, 6)),
    "slice": ImageGrid(CORONAL @ np.diag([2.5, 0.7, 1, 1]), (7, 5, 1)),
    "plane": ImageGrid(IN_PLANE @ np.diag([0.6, -1.9, 1, 1]), (7, 5)),
}


@pytest.fixture(params=GRIDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def domain_of(grid: ImageGrid, nodes: Sequence[int]) -> ImageGrid:
    """Nodes over the extent of a grid, from the first voxel centre to the last."""
    affine = grid.affine.copy()
    for axis, (n, m) in enumerate(zip(grid.spatial_shape, nodes, strict=True)):
        affine[:3, axis] *= (n - 1) / (m - 1)
    return ImageGrid(affine, (*nodes, *[1] * (len(grid.shape) - len(nodes))))


def halves_of(domain: ImageGrid) -> np.ndarray:
    return (np.array(domain.spatial_shape) - 1) / 2


def to_mm(domain: ImageGrid, phi: np.ndarray) -> np.ndarray:
    """RAS mm (N, 3), of a true 2D grid (N, 2), of positions (N, D) in [-1, 1] over the nodes."""
    index = (phi + 1) * halves_of(domain)
    mm = index @ domain.affine[:3, : index.shape[1]].T + domain.affine[:3, 3]
    return mm[:, : len(domain.shape)]


def make_flow(kind: str, images: Tensor, solver: Any = None) -> Flow:
    grid = GRIDS[kind]
    return Flow(VelocityField.of(images), solver or RungeKutta(), domain_of(grid, NODES[kind]), grid)


def smooth_flow(kind: str, keyframes: int = 1, largest: float = 1.5, solver: Any = None) -> Flow:
    """A flow of random velocities of up to ``largest`` nodes."""
    fields = [smooth_ddf(NODES[kind], seed, largest, sigma=2.5) for seed in range(keyframes)]
    halves = torch.tensor(NODES[kind]).sub(1).div(2).view(-1, *[1] * len(NODES[kind]))
    return make_flow(kind, torch.stack(fields) / halves, solver)


def cloud_flow(kind: str) -> Flow:
    """A flow of the published network, whose points are a cloud."""
    net = NODEONet(len(NODES[kind]), NODES[kind], channels=4, num_convolutions=2, bottleneck=4, scale=0.3)
    return Flow(net.requires_grad_(False), ODESolver("euler", 4), domain_of(GRIDS[kind], NODES[kind]), GRIDS[kind])


FLOWS: dict[str, Callable[[str], Flow]] = {
    "field": lambda kind: smooth_flow(kind, solver=RungeKutta(8, 0.05)),
    "keyframes": lambda kind: smooth_flow(kind, 3, solver=RungeKutta(8, 0.05)),
    "trapezoidal": lambda kind: smooth_flow(kind, 3, solver=TrapezoidalRule(64)),
    "cloud": cloud_flow,
}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS)
def make(request: pytest.FixtureRequest) -> Callable[[str], Flow]:
    return request.param


def inner_points(flow: Flow, count: int = 50, reach: float = 0.5, seed: int = 0) -> Tensor:
    """Points (N, 3) RAS mm, or (N, 2), float64, away from the border of the domain."""
    phi = np.random.default_rng(seed).uniform(-reach, reach, (count, flow.domain.spatial_dims))
    return torch.from_numpy(to_mm(flow.domain, phi))


def voxel_centres(grid: ImageGrid) -> Tensor:
    """Voxels (N, D), float64."""
    return torch.from_numpy(np.indices(grid.spatial_shape).reshape(grid.spatial_dims, -1).T.astype(float))


def largest(x: Tensor) -> float:
    return float(x.abs().max())


# Exact flows


def test_a_constant_velocity_is_a_translation_in_mm(kind):
    step = np.array([0.3, -0.2, 0.15])[: len(NODES[kind])]
    images = torch.from_numpy(step).float().view(1, -1, *[1] * len(step)).expand(1, -1, *NODES[kind])
    flow = make_flow(kind, images)
    shift = torch.from_numpy(to_mm(flow.domain, step[None]) - to_mm(flow.domain, 0 * step[None]))
    points = inner_points(flow, reach=3.0).reshape(5, 10, -1)  # outside too: the border goes on
    assert largest(flow(points) - points - shift) < 1e-5
    assert largest(flow(points, 0.75, 0.25) - points + shift / 2) < 1e-5
    assert largest(flow.inverse(points) - points + shift) < 1e-5
    assert flow(points.float()).dtype == torch.float32
    assert flow(points[:0]).shape == (0, *points.shape[1:])


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9), (0.9, 0.2), (0.5, 0.5)])
def test_a_linear_velocity_is_a_matrix_exponential(kind, times):
    dims = len(NODES[kind])
    matrix = np.random.default_rng(5).uniform(-0.3, 0.3, (dims, dims))
    nodes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in NODES[kind]], indexing="ij"))
    flow = make_flow(kind, torch.from_numpy(np.einsum("ij,j...->i...", matrix, nodes)[None])).double()
    phi = np.random.default_rng(0).uniform(-0.5, 0.5, (50, dims))
    found = flow.with_solver(RungeKutta(16))(torch.from_numpy(to_mm(flow.domain, phi)), *times)
    expected = to_mm(flow.domain, phi @ expm(matrix * (times[1] - times[0])).T)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_velocity_that_changes_in_time_is_integrated_over_it(kind):
    dims = len(NODES[kind])
    rates = torch.tensor([0.4, -0.2, 0.3])  # at times 0, 1/2 and 1
    flow = make_flow(kind, rates.view(-1, *[1] * (dims + 1)).expand(-1, dims, *NODES[kind]))
    one = torch.from_numpy(to_mm(flow.domain, np.ones((1, dims))) - to_mm(flow.domain, np.zeros((1, dims))))
    points = inner_points(flow)
    for t0, t1, integral in ((0, 0.5, 0.05), (0.5, 1, 0.025), (0, 1, 0.075), (1, 0, -0.075), (0, 0.25, 0.0625)):
        assert largest(flow(points, t0, t1) - points - integral * one) < 1e-5
        backward = flow.inverse
        assert largest(backward(points, 1 - t0, 1 - t1) - points - integral * one) < 1e-5


def test_points_beside_a_slice_keep_their_distance():
    flow = smooth_flow("slice")
    points = inner_points(flow)
    normal = torch.from_numpy(np.cross(*SLICE.affine[:3, :2].T))
    aside = torch.linspace(-7, 9, len(points)).unsqueeze(1) * normal
    assert largest(flow(points + aside) - flow(points) - aside) < 1e-5
    assert largest((flow(points) - points) @ normal) < 1e-5
    assert largest(flow(points) - points) > 1


# Laws of every flow


def test_the_inverse_brings_points_home(kind, make):
    flow = make(kind)
    points = inner_points(flow)
    there = flow(points)
    assert largest(there - points) > 0.5
    assert largest(flow.inverse(there) - points) < 1e-2
    assert largest(flow(there, 1, 0) - points) < 1e-2
    assert largest(flow(flow.inverse(points)) - points) < 1e-2
    assert torch.equal(flow.inverse.inverse(points), there)


@pytest.mark.parametrize("way", [(0.0, 0.5, 1.0), (0.0, 0.3, 0.45, 1.0), (1.0, 0.6, 0.0), (0.0, 0.9, 0.4)])
def test_a_way_is_the_sum_of_its_parts(kind, make, way):
    flow = make(kind)
    there = points = inner_points(flow)
    for t0, t1 in zip(way, way[1:], strict=False):
        there = flow(there, t0, t1)
    assert largest(there - flow(points, way[0], way[-1])) < 1e-2


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.3)])
def test_a_displacement_is_how_far_voxel_centres_are_taken(kind, make, times):
    flow = make(kind)
    for grid in (None, OTHER[kind]):
        on = grid or flow.grid
        ways = torch.tensor(on.affine[: len(on.shape), : on.spatial_dims])
        centres = voxel_centres(on) @ ways.T + torch.tensor(on.affine[: len(on.shape), 3])
        ddf = flow.displacement(grid, *times)
        assert ddf.shape == (on.spatial_dims, *on.spatial_shape)
        assert largest(ddf.flatten(1).T.double() @ ways.T - (flow(centres, *times) - centres)) < 2e-3


def test_a_trajectory_begins_where_it_is_and_ends_at_the_displacement(kind, make):
    flow = make(kind)
    first, middle, last = flow.trajectory([0.0, 0.5, 1.0], OTHER[kind])
    assert not first.any()
    assert torch.equal(middle, flow.displacement(OTHER[kind], 0.0, 0.5))
    assert torch.equal(last, flow.displacement(OTHER[kind]))


def test_a_large_grid_is_worked_on_in_parts(monkeypatch):
    flow = smooth_flow("volume")
    whole = flow.displacement()
    monkeypatch.setattr("monai_nodeo.flows.flow._AT_A_TIME", 2 * 27 * 31 + 1)
    assert torch.equal(flow.displacement(), whole)


def test_another_affine_may_be_sheared():
    flow = FLOWS["field"]("volume")
    sheared = VOLUME.affine @ np.array([[1.0, 0.2, 0, 3], [0, 0.9, 0.1, -1], [0, 0, 1.1, 2], [0, 0, 0, 1]])
    ways, centres = (torch.from_numpy(sheared[:3, :3]), voxel_centres(VOLUME))
    points = centres @ ways.T + torch.from_numpy(sheared[:3, 3])
    ddf = flow.displacement(affine=sheared)
    assert largest(ddf.flatten(1).T.double() @ ways.T - (flow(points) - points)) < 2e-3


@pytest.mark.parametrize("times", [(-0.1, 1.0), (0.0, 1.5), (2.0, 2.0), (float("nan"), 1.0)])
def test_times_that_the_flow_does_not_know_are_refused(kind, times):
    flow = smooth_flow(kind)
    for call in (lambda: flow(inner_points(flow), *times), lambda: flow.displacement(None, *times)):
        with pytest.raises(ValueError, match="the flow goes from time 0 to 1, got"):
            call()


def test_points_and_grids_that_do_not_fit_are_refused():
    for kind, count in (("volume", 2), ("volume", 4), ("slice", 2), ("plane", 1), ("plane", 4)):
        with pytest.raises(ValueError, match=rf"points have shape \(5, {count}\), expected"):
            smooth_flow(kind)(torch.zeros(5, count))
    with pytest.raises(ValueError, match="the flow is 3D and the grid 2D"):
        smooth_flow("volume").displacement(PLANE)
    velocity = VelocityField.of(torch.zeros(1, 2, 9, 13))
    for domain, grid in ((domain_of(PLANE, (9, 12)), PLANE), (domain_of(PLANE, (9, 13)), VOLUME)):
        with pytest.raises(ValueError, match=r"the velocity has nodes \(9, 13\), its domain"):
            Flow(velocity, RungeKutta(), domain, grid)
    with pytest.raises(ValueError, match="ScalingAndSquaring goes from the nodes alone"):
        smooth_flow("plane").with_solver(ScalingAndSquaring())


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.4)])
def test_gradients_go_through_points(kind, make, times):
    flow = make(kind).double()
    points = inner_points(flow, 3).requires_grad_()
    assert gradcheck(lambda x: flow(x, *times), points)


def test_gradients_go_back_in_time_where_the_velocity_is_one_of_places(kind):
    flow = smooth_flow(kind, 2).double().inverse
    assert gradcheck(flow, inner_points(flow, 3).requires_grad_())


def test_the_way_back_of_a_cloud_has_no_gradient_and_says_so():
    flow = cloud_flow("plane").inverse
    with pytest.raises(ValueError, match="a cloud has no gradient for points on the way back"):
        flow(inner_points(flow).requires_grad_())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_are_the_same_flow(kind, make, copied):
    flow = make(kind)
    ddf = flow.displacement(OTHER[kind])
    other = copied(flow)
    assert torch.equal(other.displacement(OTHER[kind]), ddf)
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(flow.displacement(OTHER[kind]), ddf)


def test_a_flow_is_moved_to_another_type_whole(kind, make):
    flow = make(kind)
    ddf, points = flow.displacement(OTHER[kind]), inner_points(flow)
    moved = flow(points)
    assert flow.to("cpu", torch.float64) is flow
    assert flow.displacement(OTHER[kind]).dtype == torch.float64
    assert largest(flow.displacement(OTHER[kind]) - ddf) < 1e-4
    assert largest(flow(points) - moved) < 1e-4


# Files


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a file of safetensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


@pytest.mark.parametrize("backward", [False, True])
def test_a_loaded_flow_has_the_same_displacement(kind, make, backward, tmp_path):
    flow = make(kind).inverse if backward else make(kind)
    flow.save(tmp_path / "flow.safetensors")
    loaded = Flow.load(tmp_path / "flow.safetensors")
    assert largest(loaded.displacement() - flow.displacement()) < 1e-6
    assert largest(loaded(inner_points(flow)) - flow(inner_points(flow))) < 1e-6
    assert type(loaded.solver) is type(flow.solver)
    assert vars(loaded.solver) == vars(flow.solver)
    for ours, theirs in ((loaded.grid, flow.grid), (loaded.domain, flow.domain)):
        assert (ours.shape, ours.sform_code, ours.qform_code) == (theirs.shape, theirs.sform_code, theirs.qform_code)
        np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_velocity_in_the_making_is_saved_as_what_is_kept_of_it(tmp_path):
    model = EulerianVelocity(2, (9, 13)).finer((9, 13))
    model.parametrisation.nodes.data.normal_()
    flow = Flow(model, RungeKutta(), domain_of(PLANE, (9, 13)), PLANE)
    flow.save(tmp_path / "flow.safetensors")
    with torch.no_grad():
        assert largest(Flow.load(tmp_path / "flow.safetensors").displacement() - flow.displacement()) < 1e-6


class Halved(VelocityModel):
    """A model of one's own."""

    def __init__(self, image_size: Sequence[int], factor: float) -> None:
        super().__init__()
        self.image_size = tuple(image_size)
        self.factor = factor
        self.rate = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        return self.factor * self.rate * phi

    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityModel:
        return Halved(image_size, self.factor)


class Restored(Halved):
    def options(self) -> dict[str, Any]:
        return {"image_size": list(self.image_size), "factor": self.factor}


def test_models_and_solvers_of_ones_own(tmp_path):
    file, domain = tmp_path / "flow.safetensors", domain_of(PLANE, (9, 13))
    flow = Flow(Restored((9, 13), 0.4), RungeKutta(), domain, PLANE)
    flow.velocity.rate.data.fill_(-0.3)
    flow.save(file)
    with torch.no_grad():
        assert torch.equal(Flow.load(file).displacement(), flow.displacement())
    other = Flow.load(file, solver=ODESolver("euler", 3))
    assert other.solver.num_steps == 3
    with pytest.raises(TypeError, match=r"Halved cannot be saved: give it a method options\(\)"):
        Flow(Halved((9, 13), 0.4), RungeKutta(), domain, PLANE).save(file)
    with pytest.raises(TypeError, match=r"function cannot be saved: give it a method options\(\)"):
        flow.with_solver(lambda velocity, phi, times: [phi for _ in times]).save(file)
    assert largest(Flow.load(file).velocity.rate + 0.3) == 0  # what was there is left alone


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Sets an entry of the header, whose place is written a.b.c."""

    def change(header: dict[str, Any]) -> Any:
        *places, last = path.split(".")
        part = header
        for place in places:
            part = part[place]
        part[last] = value
        return header

    return change


HUGE = 10**9
TOO_LARGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "image": changed("velocity.options.image_size", [HUGE, HUGE]),
    "image beyond numbers": changed("velocity.options.image_size", [10**40, 13]),
    "keyframes": changed("velocity.options.keyframes", HUGE),
    "keyframes beyond numbers": changed("velocity.options.keyframes", 10**40),
    **{
        f"network of {name}": changed("velocity", {"name": kind, "options": {"spatial_dims": 2, **options}})
        for name, kind, options in (
            ("channels", "NODEONet", {"image_size": [9, 13], "channels": 10**4}),
            ("features", "NODEONet", {"image_size": [9, 13], "bottleneck": 10**7}),
            ("convolutions", "NODEONet", {"image_size": [9, 13], "num_convolutions": HUGE}),
            ("points", "NODEONet", {"image_size": [2**15, 8]}),
            ("places", "EulerianVelocity", {"image_size": [2**15, 8]}),
        )
    },
}
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda header: [header],
    "nothing": lambda header: {},
    "another format": changed("format", "monai_nodeo.flow.99"),
    "a name of a function": changed("velocity.name", "os.system"),
    "a name of another class": changed("velocity.name", "PairTrainer"),
    "no name": changed("velocity.name", {"__reduce__": ["os.system", "true"]}),
    "an abstract class": changed("velocity.name", "VelocityModel"),
    "a solver that is none": changed("solver.name", "builtins.eval"),
    "unknown options": changed("velocity.options.eval", "print(1)"),
    "options that are none": changed("velocity.options", "abc"),
    "no velocity": changed("velocity", None),
    "a negative size": changed("velocity.options.image_size", [-9, -13]),
    "another size": changed("velocity.options.image_size", [9, 14]),
    "a size of text": changed("velocity.options.image_size", ["9", 13]),
    "a domain of another shape": changed("domain.shape", [9, 14]),
    "a domain without shape": changed("domain", {}),
    "a grid of another dimension": changed("grid.shape", [9, 14, 15]),
    "a grid without place": changed("grid.affine", [[1, 2], [3, 4]]),
    "no steps": changed("solver.options.num_steps", 0),
    "a stretch that is no number": changed("solver.options.stretch", float("nan")),
}


@pytest.mark.parametrize("change", [*HEADERS.values(), *TOO_LARGE.values()], ids=[*HEADERS, *TOO_LARGE])
def test_a_file_of_a_stranger_is_refused_in_a_line(change, tmp_path):
    file = tmp_path / "flow.safetensors"
    smooth_flow("plane").save(file)
    data = file.read_bytes()
    header = json.loads(parts_of(data)[0]["__metadata__"]["flow"])
    file.write_bytes(save(load(data), {"flow": json.dumps(change(header))}))
    with pytest.raises(FlowFileError) as caught:
        Flow.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert ("too few numbers for a model" in str(caught.value)) == (change in TOO_LARGE.values())


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_is_no_flow_is_refused_and_nothing_in_it_is_run(tmp_path):
    file, canary = tmp_path / "flow.safetensors", tmp_path / "canary"
    smooth_flow("plane").save(file)
    whole = file.read_bytes()
    images, described = load(whole)["images"], parts_of(whole)[0]["__metadata__"]
    states = {
        "no numbers": {},
        "whole numbers": {"images": images.int()},
        "more numbers": {"images": images, "other": torch.zeros(3)},
        "another name": {"image": images},
        "fewer numbers": {"images": images[..., :-1].contiguous()},
    }
    contents = {
        **{name: save(state, described) for name, state in states.items()},
        "empty": b"",
        "cut off": whole[:-5],
        "cut off in the header": whole[:100],
        "damaged header": whole[:20] + b"\x00" + whole[21:],
        "longer than memory": (2**60).to_bytes(8, "little") + whole[8:],
        "text": b"this is no flow",
        "pickle": pickle.dumps(_Canary(canary)),
        "weights of another model": save({"weight": torch.zeros(3)}),
        "nested without end": save(load(whole), {"flow": "[" * 100_000}),
    }
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(FlowFileError, match=r"^.*flow\.safetensors: [^\n]*$"):
            Flow.load(file)
    torch.save({"flow": _Canary(canary)}, file)
    with pytest.raises(FlowFileError):
        Flow.load(file)
    assert not canary.exists()
    with pytest.raises(FileNotFoundError, match="there is no such file, expected a flow"):
        Flow.load(tmp_path / "absent.safetensors")


def test_a_velocity_that_has_run_away_does_not_take_for_ever():
    images = torch.zeros(1, 2, 9, 13)
    images[0, 0, 4, 6] = 1e9
    flow = make_flow("plane", images)
    assert flow.displacement().shape == (2, 29, 37)
    images[0, 0, 4, 6] = torch.nan
    assert not make_flow("plane", images).displacement().isfinite().all()
