# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration and warping as steps of a MONAI ``Compose``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import MetaKeys, SpaceKeys, TraceKeys, ensure_tuple_rep, look_up_option
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map  # to be added to, says torch's default_collate

from monai_nodeo.data.pair import Pair
from monai_nodeo.data.placement import affine_3d, in_plane, on_grid_of
from monai_nodeo.registration.inferer import PairInferer, pair_of_tensors
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.settings import Settings

__all__ = [
    "RegisterPair",
    "RegisterPairD",
    "RegisterPairDict",
    "RegisterPaird",
    "WarpWithDDF",
    "WarpWithDDFD",
    "WarpWithDDFDict",
    "WarpWithDDFd",
]

_MODES = ("bilinear", "nearest")
_OF_ITS_GRID = (MetaKeys.AFFINE, "sform_code", "qform_code")


class RegisterPair(Transform):
    """Find the flow that takes a fixed image to a moving one, by optimisation for this pair.

    Args:
        settings: or the name of a preset; by default the best balance that was measured, for slices and for volumes.
        components: ``velocity``, ``solver``, ``loss``, ``optimizer`` or ``handlers`` of your own, see
            :py:class:`PairInferer`.

    Example:
        >>> registration = RegisterPair()(fixed, moving)
        >>> warped = registration.warp(moving)
    """

    def __init__(self, settings: Settings | str | None = None, **components: Any) -> None:
        self.settings = settings
        self.components = components
        given = [settings] if isinstance(settings, Settings) else [Settings.preset(settings, d) for d in (2, 3)]
        self._inferers = {s.spatial_dims: PairInferer(s, **components) for s in given}

    def __call__(
        self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None
    ) -> Registration:
        """Register two images, (C, *spatial), each with its affine; a plain tensor is on the fixed grid.

        Args:
            fixed: image whose grid stays.
            moving: image that is warped.
            fixed_mask: greater than 0 where the fixed image counts, (1, *spatial).
            moving_mask: the same of the moving image.

        Raises:
            PairError: when something is wrong with an image; the message names it.
        """
        pair = pair_of_tensors(fixed, moving, fixed_mask, moving_mask)
        device = fixed.device if isinstance(fixed, Tensor) else None
        return self._of(pair).register([pair], device)[0]

    def _of(self, pair: Pair) -> PairInferer:
        """The inferer for slices or for volumes; one of other settings says what is wrong."""
        return self._inferers.get(pair.spatial_dims) or next(iter(self._inferers.values()))


class RegisterPaird(MapTransform, InvertibleTransform):
    """Dictionary version of :py:class:`RegisterPair`, for images on any two grids.

    Puts the :py:class:`Registration` under a key of its own, and the warped moving image in place of the moving image,
    on the fixed grid. Several pairs of one dict get keys of their own. :py:meth:`inverse` brings what is on the fixed
    grid back to the moving one, by the flow.

    Args:
        keys: the moving image, (C, *its own spatial), and what else of it is to be warped, such as labels.
        fixed_key: key of the fixed image, (C, *spatial).
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels; one for all keys or one a key.
        registration_key: where the registration is put, in a data loader's batch a list of them; None: nowhere, as for
            batches that MONAI's ``decollate_batch`` takes apart.
        ddf_key: where the displacement of the whole way is put, (D, *spatial), voxels of the fixed grid: what MONAI's
            ``Warp`` takes; None: nowhere.
        fixed_mask_key: key of a mask of the fixed image, greater than 0 where it counts.
        moving_mask_key: the same of the moving image.
        settings: see :py:class:`RegisterPair`.
        allow_missing_keys: skip keys that are not there, but for the first one.
        components: see :py:class:`RegisterPair`.

    Raises:
        PairError: when something is wrong with an image; the message names it.
    """

    backend = RegisterPair.backend

    def __init__(
        self,
        keys: KeysCollection = "moving",
        fixed_key: Hashable = "fixed",
        mode: str | Sequence[str] = "bilinear",
        registration_key: Hashable | None = "registration",
        ddf_key: Hashable | None = None,
        fixed_mask_key: Hashable = "fixed_mask",
        moving_mask_key: Hashable = "moving_mask",
        settings: Settings | str | None = None,
        allow_missing_keys: bool = False,
        **components: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.fixed_key = fixed_key
        self.mode = [look_up_option(m, _MODES) for m in ensure_tuple_rep(mode, len(self.keys))]
        self.registration_key = registration_key
        self.ddf_key = ddf_key
        self.mask_keys = (fixed_mask_key, moving_mask_key)
        self.register = RegisterPair(settings, **components)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        results = dict(data)
        fixed, moving = data[self.fixed_key], data[self.keys[0]]
        registration = self.register(fixed, moving, *(data.get(key) for key in self.mask_keys))
        for key, mode in self.key_iterator(data, self.mode):
            given = data[key]
            warped = _warped(registration, given, moving, mode)
            self.push_transform(warped, extra_info={"registration": registration, "mode": mode})
            results[key] = warped
        if self.registration_key is not None:
            results[self.registration_key] = registration
        if self.ddf_key is not None:
            results[self.ddf_key] = _with_affine(registration.ddf, fixed)
        return results

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring what is on the fixed grid back to the grid of the moving image."""
        results = dict(data)
        for key in self.key_iterator(data):
            info = self.pop_transform(data[key])[TraceKeys.EXTRA_INFO]
            back = _named_like(info["registration"].inverse.warp(data[key], info["mode"]), data[key])
            back.applied_operations = data[key].applied_operations
            results[key] = back
        return results


class WarpWithDDF(Transform):
    """Sample an image, channel first, where a displacement of the fixed grid points.

    ``out(x) = image(x + ddf(x))``, where ``x + ddf(x)`` is a voxel of the fixed grid, taken to the image's own voxels
    by the affines of both. The image is interpolated once, whatever its grid. Outside it, each channel of an image is
    its minimum, and labels are 0.

    Args:
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, mode: str = "bilinear") -> None:
        self.mode = look_up_option(mode, _MODES)

    def __call__(self, image: Tensor, ddf: Tensor) -> Tensor:
        """Warp.

        Args:
            image: (C, *its own spatial), any dtype; a plain tensor is taken to be on the grid of the ddf.
            ddf: displacement of the whole way in voxels, (D, *spatial), tensor axis order; a plain tensor is taken to
                be on the grid of the image.

        Returns:
            (C, *spatial of the ddf), float32 or for ``"nearest"`` the dtype of the image, with the image's name and the
            affine of the ddf if it has one (the fixed grid), else of the image.

        Raises:
            ValueError: when a plain tensor has another shape than what it is taken to be on the grid of.
        """
        moving, field = _placed(image, ddf), _placed(ddf, image)
        warped = on_grid_of(field, moving, None, in_plane(field).as_tensor(), self.mode)
        if self.mode == "nearest":
            warped = warped.to(moving.dtype)
        named = _named_like(warped, image)
        return named if isinstance(image, MetaTensor) or isinstance(ddf, MetaTensor) else _plain(named)


class WarpWithDDFd(MapTransform):
    """Dictionary version of :py:class:`WarpWithDDF`; absent keys are an error unless ``allow_missing_keys``.

    Args:
        keys: images and labels to warp, each on its own grid.
        ddf_key: key of the displacement in voxels of the fixed grid, (D, *spatial).
        mode: one for all keys or one a key.
        output_keys: where the results are put; in place of the inputs by default.
        allow_missing_keys: skip keys that are not there.
    """

    backend = WarpWithDDF.backend

    def __init__(
        self,
        keys: KeysCollection,
        ddf_key: Hashable = "ddf",
        mode: str | Sequence[str] = "bilinear",
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ddf_key = ddf_key
        self.warps: list[Callable[..., Tensor]] = [WarpWithDDF(mode) for mode in ensure_tuple_rep(mode, len(self.keys))]
        self.output_keys = self.keys if output_keys is None else ensure_tuple_rep(output_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        results = dict(data)
        for key, warper, output_key in self.key_iterator(data, self.warps, self.output_keys):
            results[output_key] = warper(data[key], data[self.ddf_key])
        return results


RegisterPairD = RegisterPairDict = RegisterPaird
WarpWithDDFD = WarpWithDDFDict = WarpWithDDFd


def _in_a_list(batch: Sequence[Registration], **_: Any) -> list[Registration]:
    return list(batch)


default_collate_fn_map[Registration] = _in_a_list  # what a data loader makes of the registrations of a batch


def _plain(x: Any) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else torch.as_tensor(x)


def _warped(registration: Registration, given: Tensor, moving: Tensor, mode: str) -> MetaTensor:
    """What belongs to the moving image, on the fixed grid, with its own name."""
    placed = _placed(given, moving)
    if not isinstance(moving, MetaTensor):  # it was taken to be on the fixed grid
        placed = MetaTensor(_plain(given), affine=torch.from_numpy(registration.flow.grid.affine.copy()))
    return _named_like(registration.warp(placed, mode), given)


def _named_like(values: MetaTensor, source: Any) -> MetaTensor:
    """The values on their grid with the name of the source, and with the third axis of a slice if that has one."""
    if source.ndim == 4 and values.ndim == 3:
        values = MetaTensor(values.as_tensor()[..., None], affine=values.affine)
    affine = affine_3d(values)
    meta = {name: value for name, value in getattr(source, "meta", {}).items() if name not in _OF_ITS_GRID}
    # what a writer takes for the grid of the file
    meta |= {
        MetaKeys.ORIGINAL_AFFINE: affine.numpy().copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape[1:]),
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
    return MetaTensor(values.as_tensor(), affine=affine, meta=meta)


def _with_affine(values: Tensor, reference: Any) -> Tensor:
    """The values with the affine of the reference, if it has one."""
    return MetaTensor(values, affine=affine_3d(reference)) if isinstance(reference, MetaTensor) else values


def _placed(values: Any, reference: Any) -> MetaTensor:
    """The values with their own affine, or else that of the reference, on whose grid they have to be then."""
    if isinstance(values, MetaTensor):
        return values
    if _spatial(values) != _spatial(reference):
        raise ValueError(
            f"a plain tensor of shape {tuple(values.shape)} and an image or field of shape {tuple(reference.shape)} "
            "differ; give MetaTensors, whose affines say where their voxels are."
        )
    affine = affine_3d(reference) if isinstance(reference, MetaTensor) else torch.eye(4, dtype=torch.float64)
    return MetaTensor(_plain(values), affine=affine)


def _spatial(values: Any) -> tuple[int, ...]:
    """Shape without channels, and without the third axis of a slice."""
    shape = tuple(values.shape[1:])
    return shape[:2] if shape[2:] == (1,) else shape
