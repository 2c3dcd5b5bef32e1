# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The registration of a series as a step of a MONAI ``Compose``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.utils.data._utils.collate import default_collate_fn_map  # to be added to, says torch's default_collate

from monai_nodeo.registration.sequences.register_sequence import register_sequence
from monai_nodeo.registration.sequences.result import SequenceRegistration
from monai_nodeo.registration.settings import Settings

__all__ = ["RegisterSequenceD", "RegisterSequenceDict", "RegisterSequenced"]


class RegisterSequenced(MapTransform):
    """Find one flow through all frames of a series, and carry every frame to one of them, or to their mean shape.

    Puts the :py:class:`SequenceRegistration` under a key of its own, and the corrected series in place of the series.

    Args:
        keys: series, (T, *spatial), a frame a channel: what ``LoadImaged`` and ``EnsureChannelFirstd`` make of a 4D
            file.
        times_key: key of the times of the frames; without it in the data 0, 1, 2, ...
        label_key: key of the label map of the reference frame (with "mean" of frame 0), (1, *spatial).
        sequence_key: where the result is put, in a data loader's batch a list of them; of several series, after the
            key of each and ``"_"``.
        settings: of a pair, or the name of a preset, see :py:func:`register_sequence`.
        reference: number of the frame to which the others are carried, or "mean".
        periodic: time after which the motion begins again.
        allow_missing_keys: skip keys that are not there.
        components: ``handlers`` or ``device``, see :py:func:`register_sequence`.

    Raises:
        PairError: when something is wrong with a frame; the message names it.

    Example:
        >>> found = RegisterSequenced("cine")({"cine": frames, "times": times})
        >>> found["sequence"].flow(points, 0.1, 0.4)
    """

    def __init__(
        self,
        keys: KeysCollection,
        times_key: Hashable = "times",
        label_key: Hashable = "label",
        sequence_key: str = "sequence",
        settings: Settings | str | None = None,
        reference: int | str = 0,
        periodic: float | None = None,
        allow_missing_keys: bool = False,
        **components: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.times_key = times_key
        self.label_key = label_key
        self.sequence_key = sequence_key
        self.options = {"settings": settings, "reference": reference, "periodic": periodic, **components}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        results = dict(data)
        for key in self.key_iterator(data):
            series = data[key]
            frames = [_with_place(frame[None], series) for frame in torch.as_tensor(series).unbind()]
            found = register_sequence(frames, data.get(self.times_key), label=data.get(self.label_key), **self.options)
            corrected = torch.cat([found.corrected(n).as_tensor() for n in range(len(frames))])
            results[key] = _with_place(corrected.reshape(series.shape), series)
            results[self.sequence_key if len(self.keys) == 1 else f"{key}_{self.sequence_key}"] = found
        return results


RegisterSequenceD = RegisterSequenceDict = RegisterSequenced


def _in_a_list(batch: Any, **_: Any) -> list[SequenceRegistration]:
    return list(batch)


default_collate_fn_map[SequenceRegistration] = _in_a_list


def _with_place(values: torch.Tensor, series: Any) -> Any:
    """Values with the affine and meta of a series, if it has them."""
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    return MetaTensor(plain, meta=series.meta) if isinstance(series, MetaTensor) else plain
