# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels beside the plain operations: on CUDA, else in Triton's interpreter, if Triton is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from monai_nodeo import windows
from monai_nodeo.losses import LocalNCCLoss, local_correlation

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# more voxels than one program works on, with the axes of any length around the window
SHAPES = [(41, 37), (13, 17, 11), (3, 47, 1)]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
        from monai_nodeo import window_kernels

        yield window_kernels


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype).to(DEVICE)  # the same on any device


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 5, 21])
def test_window_sums(kernels, monkeypatch, shape, side):
    x = random(2, 3, *shape)
    sides = [side, *[3] * (len(shape) - 1)]
    found = kernels.window_sum(x, sides)
    turned = kernels.window_sum(x.mT, sides)  # not contiguous
    monkeypatch.setattr(windows, "window_kernels", lambda _: None)
    torch.testing.assert_close(found, windows.window_sum(x, sides), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(turned, windows.window_sum(x.mT, sides), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_local_correlation_and_its_gradient(kernels, monkeypatch, shape, dtype, weighted):
    pred, target = random(2, 2, *shape, dtype=dtype), random(2, 2, *shape, dtype=dtype)
    weight = random(2, 1, *shape, dtype=dtype) if weighted else None
    factors = torch.tensor([1.0, 2.0], dtype=dtype, device=DEVICE)
    spacing = (1.0, 1.5, 1.0)[: len(shape)]
    results = []
    for used in (None, kernels):
        monkeypatch.setattr(windows, "window_kernels", lambda _, used=used: used)
        monkeypatch.setattr(local_correlation, "window_kernels", lambda _, used=used: used)
        image = pred.clone().requires_grad_()
        values = LocalNCCLoss(len(shape), 5).of_each(image, target, weight, spacing)
        (gradient,) = torch.autograd.grad((factors * values).sum(), image)
        results.append((values.detach(), gradient))
    (values, gradient), (values_of_kernels, gradient_of_kernels) = results
    assert (values_of_kernels - values).norm() < TOLERANCE[dtype] * values.norm()
    assert (gradient_of_kernels - gradient).norm() < TOLERANCE[dtype] * gradient.norm()


@pytest.mark.gpu
def test_the_kernels_are_used_on_the_device(kernels):
    assert windows.window_kernels(random(8)) is kernels
    assert windows.window_kernels(torch.rand(8)) is None
