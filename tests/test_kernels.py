# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels beside the plain operations: on CUDA, else in Triton's interpreter, if Triton is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.geometry import windows
from monai_nodeo.geometry._triton import kernels_for
from monai_nodeo.losses import FoldingLoss, LocalNCCLoss, SmoothnessLoss, local_correlation, regularity

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# more voxels than one program works on, with axes of any length around the window
SHAPES = [(41, 37), (13, 17, 11), (3, 47, 1)]
FIELDS = [(41, 37), (13, 17, 11), (3, 47, 2)]
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype).to(DEVICE)  # the same on any device


@pytest.fixture
def both_ways(monkeypatch) -> Callable[[Callable[[], Tensor], Tensor], list[tuple[Tensor, Tensor]]]:
    """Values (B,), and the gradient of their sum with factors 1, 2, ..., by plain operations and by kernels."""

    def _both_ways(loss: Callable[[], Tensor], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        results = []
        for used in (lambda *_: None, lambda _, part: import_module(f"monai_nodeo.geometry._triton.{part}")):
            for module in (windows, local_correlation, regularity):
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
def test_window_sums(monkeypatch, shape, side):
    kernels = import_module("monai_nodeo.geometry._triton.windows")
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
def test_local_correlation_and_its_gradient(both_ways, shape, dtype, weighted):
    pred, target = random(2, 2, *shape, dtype=dtype).requires_grad_(), random(2, 2, *shape, dtype=dtype)
    weight = random(2, 1, *shape, dtype=dtype) if weighted else None
    spacing = (1.0, 1.5, 1.0)[: len(shape)]
    loss = LocalNCCLoss(len(shape), 5)
    assert_alike(both_ways(lambda: loss.of_each(pred, target, weight, spacing), pred))


def field(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Two displacements, one rough, with folds in both."""
    smooth = smooth_ddf(shape, largest=4.0, sigma=1.5)
    return torch.stack([smooth, smooth + torch.rand(smooth.shape)]).to(DEVICE, dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", FIELDS)
def test_folding_and_its_gradient(both_ways, shape, dtype):
    ddf = field(shape, dtype)
    assert_alike(both_ways(lambda: FoldingLoss(margin=0.5).of_each(ddf), ddf))
    assert_alike(both_ways(lambda: FoldingLoss(margin=0.5).of_each(ddf.mT), ddf))  # not contiguous


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", FIELDS)
def test_smoothness_and_its_gradient(both_ways, shape, dtype, spacing):
    ddf = field(shape, dtype)
    sides = spacing and spacing[: len(shape)]
    assert_alike(both_ways(lambda: SmoothnessLoss().of_each(ddf, sides), ddf))


@pytest.mark.parametrize("shape", FIELDS)
def test_a_field_with_nan_has_a_loss_of_nan(both_ways, shape):
    ddf = field(shape, torch.float32).detach()
    ddf[0, 0].flatten()[len(shape)] = torch.nan
    ddf.requires_grad_()
    for loss in (FoldingLoss(), SmoothnessLoss()):
        plain, by_kernels = (values.isnan().tolist() for values, _ in both_ways(partial(loss.of_each, ddf), ddf))
        assert plain == by_kernels == [True, False]


@pytest.mark.gpu
def test_the_kernels_are_used_on_the_device():
    assert kernels_for(random(8), "windows") is import_module("monai_nodeo.geometry._triton.windows")
    assert kernels_for(torch.rand(8), "windows") is None
