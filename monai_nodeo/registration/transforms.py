# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration and warping as steps of a MONAI ``Compose``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep
from torch import Tensor

from monai_nodeo.data.align import AlignPaird
from monai_nodeo.data.match import MatchGridd
from monai_nodeo.data.pair import LANDMARK_KEYS, MASK_KEYS
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.flows import EulerianVelocity, VelocityModel
from monai_nodeo.registration.checks import CheckMasksd
from monai_nodeo.registration.inferer import PAIR_EXTRAS, PairInferer, Registration
from monai_nodeo.registration.thick_slices import DDFOnFixedGridd, RefineThickSlicesd

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


def _placed(values: Any, reference: Any) -> MetaTensor:
    """The values with their own affine, or else that of the reference, on whose grid they have to be then."""
    if isinstance(values, MetaTensor):
        return values
    if values.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"a plain tensor of shape {tuple(values.shape)} and an image or field of shape {tuple(reference.shape)} "
            "differ; give MetaTensors, whose affines say where their voxels are."
        )
    affine = reference.affine.clone() if isinstance(reference, MetaTensor) else torch.eye(4, dtype=torch.float64)
    return MetaTensor(_plain(values), affine=affine)


class RegisterPair(Transform):
    """Find the displacement that takes a moving image to a fixed one, by optimisation for this pair.

    Args:
        spatial_dims: 2 or 3.
        inferer: does the registration; by default :py:class:`monai_nodeo.registration.inferer.PairInferer` as it is.
        network: velocity model whose options are used; by default
            :py:class:`monai_nodeo.flows.EulerianVelocity` as it is.

    Example:
        >>> registration = RegisterPair(spatial_dims=3)(fixed, moving)
        >>> warped = WarpWithDDF()(moving, registration.ddf)
    """

    def __init__(
        self, spatial_dims: int = 3, inferer: PairInferer | None = None, network: VelocityModel | None = None
    ) -> None:
        self.inferer = PairInferer(spatial_dims) if inferer is None else inferer
        self.network = EulerianVelocity(spatial_dims) if network is None else network

    def __call__(self, fixed: Tensor, moving: Tensor, **extras: Tensor) -> Registration:
        """Register two images of similar intensity range, for instance [0, 1].

        Args:
            fixed: (C, *spatial); the voxel sizes of a MetaTensor are used, else they count as cubes.
            moving: (C, *spatial), on the fixed grid.
            extras: perhaps ``fixed_mask`` and ``moving_mask`` (1, *spatial), and ``landmarks`` (N, 2, D), see
                :py:class:`monai_nodeo.registration.inferer.PairInferer`.

        Returns:
            the displacement in voxels (D, *spatial), with the fixed affine if there is one, and the loss curves.
        """
        fixed = fixed if isinstance(fixed, MetaTensor) else torch.as_tensor(fixed)
        more = {key: _plain(value)[None] for key, value in extras.items()}
        self.inferer(fixed[None], self.network, _plain(moving)[None], **more)
        registration = self.inferer.registrations[0]
        return replace(registration, ddf=_on_grid_of(registration.ddf, fixed))


class RegisterPaird(Transform):
    """Dictionary version of :py:class:`RegisterPair`, for images on any two grids: adds the displacement.

    The moving image is aligned by the affines of both images and, if asked for, an affine start, which is added as
    "initial_affine" (4, 4), RAS mm. It stays as it is: :py:class:`WarpWithDDFd` samples it once through all of that.
    Masks and landmarks under the keys of `data.keys` are used. Thick slices are cut into parts for the
    optimisation, see :py:mod:`monai_nodeo.registration.thick_slices`.

    Args:
        spatial_dims: 2 or 3.
        fixed_key: key of the fixed image, (C, *spatial).
        moving_key: key of the moving image, (C, *its own spatial); a plain tensor is taken to be on the fixed grid.
        ddf_key: where the displacement in voxels of the fixed grid, (D, *spatial), is put.
        initial_transform: see :py:class:`monai_nodeo.data.align.AlignPaird`.
        inferer: see :py:class:`RegisterPair`.
        network: see :py:class:`RegisterPair`.

    Raises:
        PairError: when the images cannot be aligned or do not overlap, or the loss cannot take masks that are given.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        fixed_key: Hashable = "fixed",
        moving_key: Hashable = "moving",
        ddf_key: Hashable = "ddf",
        initial_transform: str | PathLike[str] | None = None,
        inferer: PairInferer | None = None,
        network: VelocityModel | None = None,
    ) -> None:
        self.fixed_key = fixed_key
        self.moving_key = moving_key
        self.ddf_key = ddf_key
        self.register = RegisterPair(spatial_dims, inferer, network)
        self.prepare = (
            CheckMasksd(self.register.inferer.loss_function),
            AlignPaird(initial_transform),
            RefineThickSlicesd(),
            MatchGridd(),
        )
        self.finish = DDFOnFixedGridd(unfold=self.register.inferer.unfold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        fixed, moving = data[self.fixed_key], data[self.moving_key]
        placed = {"fixed": _placed(fixed, fixed), "moving": _placed(moving, fixed)}
        placed |= {key: _placed(data[key], fixed) for key in MASK_KEYS if key in data}
        placed |= {key: data[key] for key in LANDMARK_KEYS if key in data}
        pair: dict[Any, Any] = placed
        for step in self.prepare:  # no Compose, which would wrap a PairError
            pair = step(pair)
        extras = {key: pair[key] for key in PAIR_EXTRAS if key in pair}
        pair["ddf"] = _plain(self.register(pair["fixed_input"], pair["moving_input"], **extras).ddf)
        results = {**data, self.ddf_key: _on_grid_of(self.finish(pair)["ddf"], fixed)}
        if "initial_affine" in pair:
            results["initial_affine"] = pair["initial_affine"]
        return results


class WarpWithDDF(Transform):
    """Sample a moving image, channel first, where a displacement of the fixed grid points.

    ``out(x) = image(x + ddf(x))``, where ``x + ddf(x)`` is a voxel of the fixed grid, taken to the image's own voxels
    by the affines of both and the affine start. The image is interpolated once, whatever its grid. Outside it, images
    are their minimum and labels 0.

    Args:
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.
    """

    def __init__(self, mode: str = "bilinear") -> None:
        self.mode = mode

    def __call__(self, image: Tensor, ddf: Tensor, initial_affine: Tensor | None = None) -> Tensor:
        """Warp.

        Args:
            image: (C, *its own spatial), any dtype; a plain tensor is taken to be on the grid of the ddf.
            ddf: displacement in voxels, (D, *spatial), tensor axis order; a plain tensor is taken to be on the grid of
                the image.
            initial_affine: (4, 4), RAS mm, fixed physical point -> moving physical point.

        Returns:
            (C, *spatial of the ddf), float32 or for ``"nearest"`` the dtype of the image, with the affine of the ddf if
            it has one (the fixed grid), else of the image.
        """
        grid = ddf if isinstance(ddf, MetaTensor) else image
        moving = _placed(image, grid)
        fixed = MetaTensor(_plain(ddf), affine=_placed(ddf, grid).affine)
        warped = on_grid_of(fixed, moving, initial_affine, _plain(ddf), self.mode).as_tensor()
        if self.mode == "nearest":
            warped = warped.to(moving.dtype)
        return _on_grid_of(warped, grid)


class WarpWithDDFd(MapTransform):
    """Dictionary version of :py:class:`WarpWithDDF`; absent keys are an error unless ``allow_missing_keys``.

    Args:
        keys: images and labels to warp, each on its own grid.
        ddf_key: key of the displacement in voxels of the fixed grid, (D, *spatial).
        mode: one for all keys or one a key.
        reference_key: key of the fixed image, whose grid the ddf and the results have; without it, see
            :py:class:`WarpWithDDF`.
        output_keys: where the results are put; in place of the inputs by default.
        allow_missing_keys: skip keys that are not there.

    A "initial_affine" in the data, from :py:class:`monai_nodeo.data.align.AlignPaird` or :py:class:`RegisterPaird`, is
    gone through too.
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
            results[output_key] = warper(data[key], ddf, data.get("initial_affine"))
        return results


RegisterPairD = RegisterPairDict = RegisterPaird
WarpWithDDFD = WarpWithDDFDict = WarpWithDDFd
