# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration and warping as steps of a MONAI ``Compose``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep
from torch import Tensor

from monai_nodeo.fields import warp
from monai_nodeo.inferers import PairInferer, Registration
from monai_nodeo.networks import NODEONet, VelocityModel

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


def _plain(x: Any) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else torch.as_tensor(x)


def _on_grid_of(values: Tensor, reference: Any) -> Tensor:
    """The values with the affine of the reference, if it has one."""
    if isinstance(reference, MetaTensor):
        return MetaTensor(values, affine=reference.affine.clone())
    return values


class RegisterPair(Transform):
    """Find the displacement that takes a moving image to a fixed one, by optimisation for this pair.

    Args:
        spatial_dims: 2 or 3.
        inferer: does the registration; by default :py:class:`monai_nodeo.inferers.PairInferer` as it is.
        network: velocity model whose options are used; by default :py:class:`monai_nodeo.networks.NODEONet` as it is.

    Example:
        >>> registration = RegisterPair(spatial_dims=3)(fixed, moving)
        >>> warped = WarpWithDDF()(moving, registration.ddf)
    """

    def __init__(
        self, spatial_dims: int = 3, inferer: PairInferer | None = None, network: VelocityModel | None = None
    ) -> None:
        self.inferer = PairInferer(spatial_dims) if inferer is None else inferer
        self.network = NODEONet(spatial_dims) if network is None else network

    def __call__(self, fixed: Tensor, moving: Tensor) -> Registration:
        """Register two images of similar intensity range, for instance [0, 1].

        Args:
            fixed: (C, *spatial).
            moving: (C, *spatial), on the fixed grid.

        Returns:
            the displacement in voxels (D, *spatial), with the fixed affine if there is one, and the loss curves.
        """
        self.inferer(_plain(fixed)[None], self.network, _plain(moving)[None])
        registration = self.inferer.registrations[0]
        return replace(registration, ddf=_on_grid_of(registration.ddf, fixed))


class RegisterPaird(Transform):
    """Dictionary version of :py:class:`RegisterPair`: adds the displacement under ``ddf_key``.

    Args:
        spatial_dims: 2 or 3.
        fixed_key: key of the fixed image.
        moving_key: key of the moving image, on the fixed grid.
        ddf_key: where the displacement in voxels (D, *spatial) is put.
        inferer: see :py:class:`RegisterPair`.
        network: see :py:class:`RegisterPair`.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        fixed_key: Hashable = "fixed",
        moving_key: Hashable = "moving",
        ddf_key: Hashable = "ddf",
        inferer: PairInferer | None = None,
        network: VelocityModel | None = None,
    ) -> None:
        self.fixed_key = fixed_key
        self.moving_key = moving_key
        self.ddf_key = ddf_key
        self.register = RegisterPair(spatial_dims, inferer, network)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, self.ddf_key: self.register(data[self.fixed_key], data[self.moving_key]).ddf}


class WarpWithDDF(Transform):
    """Sample an image, channel first, where a displacement points: ``out(x) = image(x + ddf(x))``, 0 outside.

    Args:
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.
    """

    def __init__(self, mode: str = "bilinear") -> None:
        self.mode = mode

    def __call__(self, image: Tensor, ddf: Tensor) -> Tensor:
        """Warp.

        Args:
            image: (C, *spatial), any dtype.
            ddf: displacement in voxels, (D, *spatial), tensor axis order.

        Returns:
            (C, *spatial), float32 or for ``"nearest"`` the dtype of the image, with the affine of the ddf if it has
            one (the fixed grid), else of the image.
        """
        values, field = _plain(image), _plain(ddf)
        warped = warp(values[None].to(field), field[None], self.mode, padding_mode="zeros")[0]
        if self.mode == "nearest":
            warped = warped.to(values.dtype)
        return _on_grid_of(warped, ddf if isinstance(ddf, MetaTensor) else image)


class WarpWithDDFd(MapTransform):
    """Dictionary version of :py:class:`WarpWithDDF`; absent keys are an error unless ``allow_missing_keys``.

    Args:
        keys: images and labels to warp.
        ddf_key: key of the displacement in voxels, (D, *spatial).
        mode: one for all keys or one a key.
        reference_key: key of the fixed image, whose affine the results get; without it, see :py:class:`WarpWithDDF`.
        output_keys: where the results are put; in place of the inputs by default.
        allow_missing_keys: skip keys that are not there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        ddf_key: Hashable = "ddf",
        mode: str | Sequence[str] = "bilinear",
        reference_key: Hashable = "fixed",
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ddf_key = ddf_key
        self.reference_key = reference_key
        self.warps = [WarpWithDDF(mode) for mode in ensure_tuple_rep(mode, len(self.keys))]
        self.output_keys = self.keys if output_keys is None else ensure_tuple_rep(output_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        results = dict(data)
        ddf, reference = data[self.ddf_key], data.get(self.reference_key)
        if isinstance(reference, MetaTensor):
            ddf = _on_grid_of(_plain(ddf), reference)
        for key, warper, output_key in self.key_iterator(data, self.warps, self.output_keys):
            results[output_key] = warper(data[key], ddf)
        return results


RegisterPairD = RegisterPairDict = RegisterPaird
WarpWithDDFD = WarpWithDDFDict = WarpWithDDFd
