# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What losses of images and losses of fields have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

__all__ = ["SinglePrecisionLoss", "at_least_float32"]


def at_least_float32(x: Any) -> Any:
    """A tensor of half precision in float32; anything else as it is."""
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x


class SinglePrecisionLoss(_Loss, ABC):
    """A loss that is computed in float32 at least, whatever autocast says: in half precision a variance is noise."""

    def __init__(self) -> None:
        super().__init__()  # a subclass that knows other reductions than the mean sets its own

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "of_each"):
            if name in vars(cls):
                setattr(cls, name, _in_float32(vars(cls)[name]))


def _in_float32(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(method)
    def computed(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        given = {name: at_least_float32(x) for name, x in kwargs.items()}
        none = nullcontext() if not torch.amp.is_autocast_available(device) else torch.autocast(device, enabled=False)
        with none:
            return method(self, *map(at_least_float32, args), **given)

    return computed
