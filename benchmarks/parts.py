# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Time of the parts of an iteration, each beside its plain or usual form: ``python benchmarks/parts.py``.

Forward and backward on a 160x192x144 volume, the forms in turn, medians of five; kept in parts.json beside this file.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from monai_nodeo.data.examples import example_pair
from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid
from monai_nodeo.geometry.sampling import make_warp, sample
from monai_nodeo.losses import FoldingLoss, LocalNCCLoss, SmoothnessLoss
from monai_nodeo.registration.malloc import keep_freed_memory

SHAPE = (160, 192, 144)
REPEATS = 5


def plain_smoothness(ddf: Tensor) -> Tensor:
    """The smoothness loss as autograd would have it."""
    return sum((ddf.diff(dim=axis).square().mean() for axis in range(2, ddf.ndim)), ddf.new_zeros(()))


def cases(image: Tensor, field: Tensor) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Part -> its forms; each gives a loss that is differentiable by ``image`` or ``field``."""
    target = image.detach().roll(1, 2)
    monai_ncc = LocalNormalizedCrossCorrelationLoss(3, kernel_size=21)
    ncc, ncc_map = LocalNCCLoss(3, 21), LocalNCCLoss(3, 21, reduction="none")
    folding_map = FoldingLoss(reduction="none")
    warp, identity = make_warp(), identity_grid(SHAPE)
    return {
        "local NCC, 21 voxels": {
            "MONAI": lambda: monai_ncc(image, target),
            "autograd": lambda: ncc_map(image, target).mean(),
            "here": lambda: ncc(image, target),
        },
        "folding": {"autograd": lambda: folding_map(field).mean(), "here": lambda: FoldingLoss()(field)},
        "smoothness": {"autograd": lambda: plain_smoothness(field), "here": lambda: SmoothnessLoss()(field)},
        "warp": {
            "MONAI": lambda: warp(target, field).mean(),
            "here": lambda: sample(target, ddf_to_phi(field, identity)).mean(),
        },
    }


def milliseconds(form: Callable[[], Tensor], inputs: list[Tensor]) -> float:
    """Time of one forward and backward pass."""
    started = time.perf_counter()
    torch.autograd.grad(form(), inputs, allow_unused=True)
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Measure all parts and keep the figures."""
    torch.manual_seed(0)
    pair = example_pair(3, 1.0)
    image = torch.zeros(1, 1, *SHAPE)
    box = tuple(slice(0, min(a, b)) for a, b in zip(SHAPE, pair.fixed.shape, strict=True))
    image[(0, 0, *box)] = torch.from_numpy(pair.fixed)[box]
    image.requires_grad_()
    field = (torch.randn(1, 3, *SHAPE) * 0.1).requires_grad_()
    table = {}
    with keep_freed_memory():
        for part, forms in cases(image, field).items():
            times: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(REPEATS + 1):
                for name, form in forms.items():
                    times[name].append(milliseconds(form, [image, field]))
            table[part] = {name: round(statistics.median(values[1:]), 1) for name, values in times.items()}
            print(
                f"{part:22s}", "  ".join(f"{name} {value:7.1f} ms" for name, value in table[part].items()), flush=True
            )
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    result = {"shape": SHAPE, "milliseconds": table, "machine": machine, "torch": torch.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
