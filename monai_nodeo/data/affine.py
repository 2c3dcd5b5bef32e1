# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The linear map between two images, by SimpleITK.

ITK is given coordinates in RAS mm (a slice: within its plane) and the same numbers come back: it does not care what its
world axes are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.pair import Pair, PairError, source_name
from monai_nodeo.data.placement import affine_3d

__all__ = ["find_affine"]

_FOREGROUND = 0.05  # of the largest difference from the background
_RESOLUTION = {2: 180, 3: 80}  # grid points along an axis of the foreground, on average
_AIR_RESOLUTION = {2: 256, 3: 128}  # the same along an axis of the whole image
_SAMPLES = 15000
_BINS = 32
_SEARCH_STEPS, _SEARCH_ANGLE = 3, math.pi / 12  # to either side of the header's orientation, about each axis
_MARGIN = 10  # grid points around the foreground

_Linear = sitk.Euler2DTransform | sitk.Euler3DTransform | sitk.AffineTransform


@dataclass(frozen=True)
class _Side:
    """One image as ITK sees it, at the resolution of the alignment.

    Args:
        image: float32.
        mask: uint8, what counts, or None.
        origin: first corner of the box around the foreground, in the axes of the image.
        extent: lengths of the box.
        centre: of mass of the foreground.
    """

    image: sitk.Image
    mask: sitk.Image | None
    origin: np.ndarray
    extent: np.ndarray
    centre: np.ndarray


def find_affine(pair: Pair, *, rigid: bool = True, affine: bool = True) -> Tensor:
    """The linear map that takes the fixed image to the moving one; slices are mapped within the fixed plane.

    Args:
        pair: images and perhaps masks, each on its own grid; of several channels, the first one is looked at.
        rigid: find rotation and translation by mutual information, instead of the centres of mass alone.
        affine: find scales and shears after that.

    Returns:
        (4, 4), float64, RAS mm: fixed physical point -> moving physical point.

    Raises:
        PairError: when nothing differs from the background, or the images have too little in common.
    """
    fixed, moving = pair.fixed.image, pair.moving.image
    frame = _frame(fixed)
    names = f"{source_name('fixed', fixed)} and {source_name('moving', moving)}"
    still, other = _side("fixed", fixed, pair.fixed.mask, frame), _side("moving", moving, pair.moving.mask, frame)
    transform = _centred(still, other)
    try:
        with _one_thread():
            if rigid:
                _search(transform, still, other)
                _descend(transform, still, other, levels=(4, 2, 1))
            if rigid and affine:
                transform = _as_affine(transform)
                _descend(transform, still, other, levels=(2, 1))
    except RuntimeError as error:
        raise PairError(
            f"{names} cannot be aligned ({str(error).splitlines()[-1].strip()}); "
            'try initial_transform "moments", give one in a file, or check the masks.'
        ) from error
    return _in_space(transform, frame)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The sums of several threads are rounded in another order each time, and the descent ends elsewhere."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _frame(fixed: MetaTensor) -> np.ndarray:
    """(3, D) orthonormal axes in which ITK works: those of the world, for a slice two that span its plane."""
    if fixed.ndim == 4:
        return np.eye(3)
    return np.linalg.qr(affine_3d(fixed)[:3, :2].numpy())[0]


def _in_space(transform: _Linear, frame: np.ndarray) -> Tensor:
    """(4, 4) of a transform within the frame; across it, nothing moves."""
    dims = transform.GetDimension()
    offset = np.array(transform.TransformPoint([0.0] * dims))
    matrix = np.eye(4)
    across = np.eye(3) - frame @ frame.T
    matrix[:3, :3] = frame @ np.reshape(transform.GetMatrix(), (dims, dims)) @ frame.T + across
    matrix[:3, 3] = frame @ offset
    return torch.from_numpy(matrix)


def _side(key: str, image: MetaTensor, mask: MetaTensor | None, frame: np.ndarray) -> _Side:
    full = _itk_image(image, frame)
    dims = full.GetDimension()
    size = np.array(full.GetSize()) * full.GetSpacing()
    coarse = np.prod(size) ** (1 / dims) / _AIR_RESOLUTION[dims]
    factors = [max(1, round(coarse / spacing)) for spacing in full.GetSpacing()]
    small = sitk.BinShrink(full, [min(f, n) for f, n in zip(factors, full.GetSize(), strict=True)])
    small_mask = None
    if mask is not None:
        counted = sitk.Cast(_itk_image(mask, frame), sitk.sitkUInt8)
        small_mask = sitk.Resample(counted, small, sitk.Transform(), sitk.sitkNearestNeighbor)
    foreground = _foreground(small, small_mask)
    if not foreground.any():
        raise PairError(f"{source_name(key, image)}: nothing differs from the background; check image and mask.")
    index = np.stack(foreground.nonzero())[::-1]  # numpy of ITK has the last axis first
    low, high = index.min(1), index.max(1)
    corner = small.TransformIndexToPhysicalPoint(low.tolist())
    centre = small.TransformContinuousIndexToPhysicalPoint(index.mean(1).tolist())
    extent = (high - low + 1) * np.array(small.GetSpacing())
    return _Side(small, small_mask, np.array(corner), extent, np.array(centre))


def _itk_image(image: MetaTensor, frame: np.ndarray) -> sitk.Image:
    dims = frame.shape[1]
    affine = affine_3d(image).numpy()
    axes = frame.T @ affine[:3, :dims]
    spacing = np.linalg.norm(affine[:3, :dims], axis=0)
    result = sitk.GetImageFromArray(image.as_tensor()[0].cpu().numpy().T)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((axes / spacing).ravel().tolist())
    result.SetOrigin((frame.T @ affine[:3, 3]).tolist())
    return result


def _foreground(image: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """What differs from the border's median, bright or dark, and counts; in the axis order of ITK's arrays."""
    values = sitk.GetArrayViewFromImage(image)
    border = np.ones(values.shape, dtype=bool)
    border[tuple(slice(1, -1) for _ in values.shape)] = False
    difference = np.abs(values - np.median(values[border]))
    inside = difference > _FOREGROUND * difference.max()
    return inside if mask is None else inside & (sitk.GetArrayViewFromImage(mask) > 0)


def _centred(fixed: _Side, moving: _Side) -> _Linear:
    transform = sitk.Euler3DTransform() if len(fixed.centre) == 3 else sitk.Euler2DTransform()
    transform.SetCenter(fixed.centre.tolist())
    transform.SetTranslation((moving.centre - fixed.centre).tolist())
    return transform


def _as_affine(rigid: _Linear) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(rigid.GetDimension())
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _search(transform: _Linear, fixed: _Side, moving: _Side) -> None:
    """Try rotations about every axis at the coarsest level: a descent alone stops at the first of many optima."""
    method, _ = _metric(transform, fixed, moving, levels=(4,))
    angles = 3 if transform.GetDimension() == 3 else 1
    parameters = transform.GetNumberOfParameters()
    steps = [_SEARCH_STEPS] * angles + [0] * (parameters - angles)
    method.SetOptimizerAsExhaustive(steps, stepLength=_SEARCH_ANGLE)
    method.SetOptimizerScales([1.0] * parameters)
    method.Execute(fixed.image, moving.image)


def _descend(transform: _Linear, fixed: _Side, moving: _Side, levels: tuple[int, ...]) -> None:
    method, step = _metric(transform, fixed, moving, levels)
    points = np.prod(fixed.extent / step)
    shares = [min(1.0, _SAMPLES * level ** transform.GetDimension() / points) for level in levels]
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(shares, seed=1)
    # Steps in mm, since the scales are those of the shift that a parameter makes.
    method.SetOptimizerAsRegularStepGradientDescent(2 * step, step / 200, 100, gradientMagnitudeTolerance=1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.Execute(fixed.image, moving.image)


def _metric(
    transform: _Linear, fixed: _Side, moving: _Side, levels: tuple[int, ...]
) -> tuple[sitk.ImageRegistrationMethod, float]:
    """Mutual information on an isotropic grid over the fixed foreground, whatever the voxels are; and its spacing."""
    dims = transform.GetDimension()
    step = float(np.prod(fixed.extent) ** (1 / dims)) / _RESOLUTION[dims]
    direction = np.reshape(fixed.image.GetDirection(), (dims, dims))
    origin = fixed.origin - direction @ np.full(dims, _MARGIN * step)
    size = np.ceil(fixed.extent / step).astype(int) + 2 * _MARGIN
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetVirtualDomain(size.tolist(), origin.tolist(), [step] * dims, direction.ravel().tolist())
    if fixed.mask is not None:
        method.SetMetricFixedMask(fixed.mask)
    if moving.mask is not None:
        method.SetMetricMovingMask(moving.mask)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([level * step / 2 for level in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method, step
