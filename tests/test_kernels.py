# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels beside the plain operations: Numba's, and Triton's on CUDA or else in its interpreter."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.geometry import sampling, windows
from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.coordinates import identity_grid
from monai_nodeo.losses import (
    FoldingLoss,
    IntensityLoss,
    LocalNCCLoss,
    LogJacobianLoss,
    SmoothnessLoss,
    local_ncc,
    regularity,
    similarity,
)

HAS_TRITON = find_spec("triton") is not None
BACKENDS = ["numba", pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"))]
# more voxels than one program works on, with axes of any length around the window
SHAPES = [(41, 37), (13, 17, 11), (3, 47, 1)]
FIELDS = [(41, 37), (13, 17, 11), (3, 47, 2)]


def kernels_of(library: str) -> Callable[..., ModuleType]:
    """What `kernels_for` returns where the library is there and no other."""
    return lambda _, part, room="geometry": import_module(f"monai_nodeo.{room}._{library}.{part}")


PLAIN_AND_NUMBA = (lambda *_: None, kernels_of("numba"))
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}


@pytest.fixture(params=BACKENDS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton" and not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    return request.param


@pytest.fixture
def device(library: str) -> str:
    return "cuda" if library == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture
def random(device: str) -> Callable[..., Tensor]:
    """Uniform numbers, the same on any device."""
    return lambda *shape, dtype=torch.float32: torch.rand(*shape, dtype=dtype).to(device)


@pytest.fixture
def both_ways(monkeypatch, library) -> Callable[[Callable[[], Tensor], Tensor], list[tuple[Tensor, Tensor]]]:
    """Values (B,), and the gradient of their sum with factors 1, 2, ..., by plain operations and by kernels."""

    def _both_ways(loss: Callable[[], Tensor], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        results = []
        for used in (lambda *_: None, kernels_of(library)):
            for module in (windows, local_ncc, regularity, similarity):
                monkeypatch.setattr(module, "kernels_for", used)
            values = loss()
            factors = torch.arange(1, len(values) + 1, dtype=x.dtype, device=x.device)
            (gradient,) = torch.autograd.grad((factors * values).sum(), x)
            results.append((values.detach(), gradient))
        return results

    return _both_ways


def assert_alike(results: list[tuple[Tensor, Tensor]]) -> None:
    for plain, by_kernels in zip(*results, strict=True):
        assert plain.norm() > 0
        assert (by_kernels - plain).norm() < TOLERANCE[plain.dtype] * plain.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 5, 21])
def test_window_sums(monkeypatch, library, random, shape, side):
    kernels = kernels_of(library)(None, "windows")
    x = random(2, 3, *shape)
    sides = [side, *[3] * (len(shape) - 1)]
    found = kernels.window_sum(x, sides)
    turned = kernels.window_sum(x.mT, sides)  # not contiguous
    monkeypatch.setattr(windows, "kernels_for", lambda *_: None)
    torch.testing.assert_close(found, windows.window_sum(x, sides), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(turned, windows.window_sum(x.mT, sides), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_local_correlation_and_its_gradient(both_ways, random, shape, dtype, weighted):
    pred, target = random(2, 2, *shape, dtype=dtype).requires_grad_(), random(2, 2, *shape, dtype=dtype)
    weight = random(2, 1, *shape, dtype=dtype) if weighted else None
    spacing = (1.0, 1.5, 1.0)[: len(shape)]
    loss = LocalNCCLoss(len(shape), 5)
    assert_alike(both_ways(lambda: loss.of_each(pred, target, weight, spacing), pred))


def field(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Two displacements, one rough, with folds in both."""
    smooth = smooth_ddf(shape, largest=4.0, sigma=1.5)
    return torch.stack([smooth, smooth + torch.rand(smooth.shape)]).to(device, dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", FIELDS)
@pytest.mark.parametrize("loss", [FoldingLoss(margin=0.5), LogJacobianLoss()])
def test_penalties_of_the_determinant_and_their_gradients(both_ways, device, loss, shape, dtype):
    ddf = field(shape, dtype, device)
    assert_alike(both_ways(lambda: loss.of_each(ddf), ddf))
    assert_alike(both_ways(lambda: loss.of_each(ddf.mT), ddf))  # not contiguous


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", FIELDS)
def test_smoothness_and_its_gradient(both_ways, device, shape, dtype, spacing):
    ddf = field(shape, dtype, device)
    sides = spacing and spacing[: len(shape)]
    assert_alike(both_ways(lambda: SmoothnessLoss().of_each(ddf, sides), ddf))


@pytest.mark.parametrize("shape", FIELDS)
def test_a_field_with_nan_has_a_loss_of_nan(both_ways, device, shape):
    ddf = field(shape, torch.float32, device).detach()
    ddf[0, 0].flatten()[len(shape)] = torch.nan
    ddf.requires_grad_()
    for loss in (FoldingLoss(), LogJacobianLoss(), SmoothnessLoss()):
        plain, by_kernels = (values.isnan().tolist() for values, _ in both_ways(partial(loss.of_each, ddf), ddf))
        assert plain == by_kernels == [True, False]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_intensity_and_its_gradient(monkeypatch, dtype, weighted):
    pred, target = torch.rand(2, 3, 41, 37, dtype=dtype).requires_grad_(), 100 + torch.rand(2, 3, 41, 37, dtype=dtype)
    weight = torch.rand(2, 1, 41, 37, dtype=dtype) if weighted else None
    found = []
    for used in PLAIN_AND_NUMBA:
        monkeypatch.setattr(similarity, "kernels_for", used)
        values = IntensityLoss().of_each(pred, target, weight)
        found.append((values.detach(), *torch.autograd.grad(values[0] + 2 * values[1], pred)))
    for plain, by_kernels in zip(*found, strict=True):
        assert (by_kernels - plain).norm() < (1e-4 if dtype == torch.float32 else 1e-11) * plain.norm()


@pytest.mark.parametrize("size", [(13, 17, 11), (3, 47, 1)])
@pytest.mark.parametrize("cloud", [(9, 5, 7), (2, 3, 1), (12, 11, 10)])
@pytest.mark.parametrize("away", [None, 0.1])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_samples_and_their_gradients(monkeypatch, size, cloud, away, channels):
    """In float64, away from the voxel centres, where slopes jump; some positions outside."""
    image = torch.rand(2, channels, *size, dtype=torch.float64, requires_grad=True)
    phi = (torch.rand(2, 3, *cloud, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    finer = [2 * n for n in cloud]
    offset = away and away * torch.randn(2, 3, *finer, dtype=torch.float64)
    found = []
    for used in PLAIN_AND_NUMBA:
        monkeypatch.setattr(sampling, "kernels_for", used)
        values = sampling.sample(image, phi)
        fine = sampling.sample_resized(image.detach(), phi, finer, offset)
        total = (values * values).sum() + (fine * fine.detach().cos()).sum()
        found.append((values.detach(), fine.detach(), *torch.autograd.grad(total, (image, phi))))
    for plain, by_kernels in zip(*found, strict=True):
        torch.testing.assert_close(by_kernels, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(13, 17, 11), (3, 9, 1)])
def test_samples_of_a_field_at_itself(monkeypatch, size):
    field = (torch.rand(2, 3, *size, dtype=torch.float64) * 0.8 - 0.4).requires_grad_()
    found = []
    for used in PLAIN_AND_NUMBA:
        monkeypatch.setattr(sampling, "kernels_for", used)
        values = sampling.sample_at_itself(field, 0.7)
        found.append((values.detach(), *torch.autograd.grad((values * values.detach().cos()).sum(), field)))
    for plain, by_kernels in zip(*found, strict=True):
        torch.testing.assert_close(by_kernels, plain, rtol=0, atol=1e-10)


def test_single_precision_is_as_exact_as_it_can_be():
    image, phi = torch.rand(1, 3, 13, 17, 11), torch.rand(1, 3, 12, 11, 10) * 2 - 1
    for values in (sampling.sample(image, phi), sampling.sample(image[:, :1], phi)):
        exact = sampling.sample(image.double(), phi.double())
        torch.testing.assert_close(values.double(), exact[:, : values.shape[1]], rtol=0, atol=1e-5)
    field = 0.2 * image - 0.1
    exact = sampling.sample_at_itself(field.double(), 0.7)
    torch.testing.assert_close(sampling.sample_at_itself(field, 0.7).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("resized", [False, True])
def test_slopes_at_the_voxels_are_not_all_those_to_the_next_one(axis, resized):
    """A registration that starts there would be pulled to one side: in single precision most were."""
    size = (57, 90, 29)
    place = torch.arange(size[axis], dtype=torch.float32).view(*[-1 if a == axis else 1 for a in range(3)])
    image = (place**2).expand(1, 1, *size).contiguous()
    phi = identity_grid(tuple(n // 2 for n in size) if resized else size).requires_grad_()
    values = sampling.sample_resized(image, phi, size) if resized else sampling.sample(image, phi)
    (slopes,) = torch.autograd.grad(values.sum(), phi)
    inner = place.flatten()[1:-1]
    to_next_or_last = slopes[0, axis].sum() / (size[axis] - 1) * 2 / (size[0] * size[1] * size[2] / size[axis])
    assert abs(float(to_next_or_last - 2 * inner.sum()) / (size[axis] - 2)) < 0.25


def test_results_do_not_depend_on_the_threads():
    pred, target = torch.rand(1, 1, 33, 21, 17, requires_grad=True), torch.rand(1, 1, 33, 21, 17)
    field, phi = torch.rand(1, 3, 33, 21, 17, requires_grad=True), torch.rand(1, 3, 33, 21, 17) * 2 - 1
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            value = LocalNCCLoss(3, 5)(pred, target)
            samples = [sampling.sample(field, phi), sampling.sample_at_itself(field, 0.1)]
            gradients = (*torch.autograd.grad(value, pred), *torch.autograd.grad(samples, field, samples))
            found.append((value.detach(), *[x.detach() for x in samples], *gradients))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_kernels_are_used_where_they_can_be():
    found = kernels_for(torch.rand(8), "local_ncc", "losses")
    assert found is import_module("monai_nodeo.losses._numba.local_ncc")
    assert kernels_for(torch.rand(8), "windows") is import_module("monai_nodeo.geometry._numba.windows")
    assert kernels_for(torch.rand(8).half(), "windows") is None
    assert kernels_for(torch.rand(8, device="meta"), "windows") is None


@pytest.mark.gpu
def test_the_kernels_are_used_on_the_device():
    found = kernels_for(torch.rand(8).cuda(), "local_ncc", "losses")
    assert found is import_module("monai_nodeo.losses._triton.local_ncc")


def test_nothing_is_read_from_memory_that_was_not_written(monkeypatch):
    """Memory that a kernel asks for holds what was freed there: here no numbers."""
    kernels = import_module("monai_nodeo.geometry._numba.resized_sampling")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the thread that freed it
    image, phi, grad = torch.rand(1, 1, 9, 9, 150), torch.rand(1, 3, 5, 5, 100), torch.rand(1, 1, 9, 9, 150)

    def gradient() -> torch.Tensor:
        return kernels.sample_resized_gradient(image, phi, (9, 9, 150), None, grad)

    expected = gradient()
    for values in range(296, 340):  # about as many as the kernel asks for
        kept = [np.full(values, np.nan, np.float32) for _ in range(8)]
        del kept
        assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_place_that_is_no_number_is_not_read(bad):
    field = torch.zeros(1, 3, 5, 6, 7)
    field[0, 1, 2, 3, 4] = bad
    kernels = import_module("monai_nodeo.geometry._numba.self_sampling")
    for found in (
        kernels.sample_at_itself(field, 1.0),
        kernels.sample_at_itself_gradient(field, 1.0, torch.ones_like(field)),
    ):
        assert found[0, :, 0, 0, 0].isfinite().all()
    phi = field.clone()
    values = import_module("monai_nodeo.geometry._numba.sampling").sample(torch.rand(1, 1, 5, 6, 7), phi)
    assert values[0, 0, 0, 0, 0].isfinite()
    assert values[0, 0, 2, 3, 4].isfinite() == (bad == bad)
