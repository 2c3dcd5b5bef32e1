# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels from atlases as a step of a MONAI ``Compose``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, ensure_tuple_rep

from monai_nodeo.apps.atlases.propagation import propagate
from monai_nodeo.apps.atlases.result import Propagation
from monai_nodeo.data.lists import atlases_to_one
from monai_nodeo.registration import PairInferer, Settings

__all__ = ["PropagateLabelsD", "PropagateLabelsDict", "PropagateLabelsd"]


class PropagateLabelsd(MapTransform):
    """Label images by atlases, each of which is registered to the image; see :py:func:`propagate`.

    Args:
        keys: images, (C, *spatial), each with its affine; a plain tensor has voxels of 1 mm.
        atlases: a folder or list of files, see :py:func:`monai_nodeo.data.lists.atlases_to_one`; or dicts of
            ``"image"`` and ``"label"``, paths or images in memory.
        label_keys: where the labels are put, (1, *spatial), int64, on the grid of the image.
        probability_keys: where their probability is put, (1, *spatial), float32; None: nowhere.
        confidence_keys: where by how much they are more probable than the next ones is put; None: nowhere.
        settings: of the registration, or the name of a preset.
        fusion: ``"local"``, ``"majority"`` or ``"staple"``.
        best: how many atlases to take, those most similar after registration; by default all.
        allow_missing_keys: skip keys that are not there.
        components: see :py:class:`monai_nodeo.registration.PairInferer`.

    Raises:
        PairError: when the image cannot be labelled by any atlas.

    Example:
        >>> labelled = PropagateLabelsd("image", "atlases", settings="fast")({"image": image})["label"]
    """

    def __init__(
        self,
        keys: KeysCollection,
        atlases: str | PathLike[str] | Sequence[Mapping[str, Any]],
        label_keys: KeysCollection = "label",
        probability_keys: KeysCollection | None = None,
        confidence_keys: KeysCollection | None = None,
        settings: Settings | str | None = None,
        fusion: str = "local",
        best: int | None = None,
        allow_missing_keys: bool = False,
        **components: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.atlases = atlases
        self.label_keys = ensure_tuple_rep(label_keys, len(self.keys))
        self.probability_keys = ensure_tuple_rep(probability_keys, len(self.keys))
        self.confidence_keys = ensure_tuple_rep(confidence_keys, len(self.keys))
        self.settings, self.components = settings, components
        self.fusion, self.best = fusion, best

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        results = dict(data)
        for key, *targets in self.key_iterator(data, self.label_keys, self.probability_keys, self.confidence_keys):
            found = self._propagate(data[key])
            for target, values in zip(targets, found.fused, strict=True):
                if target is not None:
                    results[target] = _on_grid(values, data[key])
        return results

    def _propagate(self, image: torch.Tensor) -> Propagation:
        """An image by all atlases."""
        if isinstance(self.atlases, str | PathLike):
            name = getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "")
            rows = atlases_to_one(name, self.atlases)
        else:
            rows = [
                {"id": f"atlas_{n}", "moving": atlas["image"], "moving_label": atlas["label"]}
                for n, atlas in enumerate(self.atlases, start=1)
            ]
        dims = 2 if image.ndim == 3 or image.shape[3] == 1 else 3
        settings = self.settings
        if not isinstance(settings, Settings):
            settings = Settings.preset(settings, dims)
        inferer = PairInferer(settings, **{"handlers": (), **self.components})
        rows = [{**row, "fixed": image} for row in rows]
        device = image.device if isinstance(image, torch.Tensor) else None
        return propagate(inferer, rows, self.fusion, self.best, device=device)


PropagateLabelsD = PropagateLabelsDict = PropagateLabelsd


def _on_grid(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """With a channel, and in the place and the shape of the image."""
    values = values[None].reshape(1, *image.shape[1:]).to(image.device)
    return MetaTensor(values, meta=dict(image.meta)) if isinstance(image, MetaTensor) else values
