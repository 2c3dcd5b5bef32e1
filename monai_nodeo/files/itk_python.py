# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images and transforms of the package ``itk``, in memory; the rest of the package speaks with SimpleITK.

``itk`` is imported when a transform is made for it: it is no dependency, and whoever asks has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files.grid import itk_geometry
from monai_nodeo.files.transform import Affine, Transform

__all__ = ["is_itk_python", "itk_python_transform", "sitk_of_itk_python"]


def is_itk_python(value: Any) -> bool:
    """Whether it is an image of ``itk``, without an import of it."""
    return type(value).__module__.startswith("itk") and hasattr(value, "GetLargestPossibleRegion")


def sitk_of_itk_python(image: Any) -> sitk.Image:
    """An image of ``itk``, (X, Y, Z) or (X, Y), perhaps with components, as one of SimpleITK."""
    import itk

    found = sitk.GetImageFromArray(itk.array_view_from_image(image), image.GetNumberOfComponentsPerPixel() > 1)
    found.SetOrigin(list(image.GetOrigin()))
    found.SetSpacing(list(image.GetSpacing()))
    found.SetDirection(itk.array_from_matrix(image.GetDirection()).ravel().tolist())
    return found


def itk_python_transform(transform: Transform) -> Any:
    """A transform as an ``itk.CompositeTransform``, which lets the step that was added last act first.

    Raises:
        ImportError: when ``itk`` is not installed.
    """
    import itk

    dims = transform.world_dims
    composite = itk.CompositeTransform[itk.D, dims].New()
    for step in reversed(transform.steps):
        if isinstance(step, Affine):
            part = itk.AffineTransform[itk.D, dims].New()
            part.SetMatrix(itk.matrix_from_array(np.reshape(step.itk.GetMatrix(), (dims, dims))))
            part.SetTranslation(step.itk.GetTranslation())
        else:
            field = itk.Image[itk.Vector[itk.D, dims], dims].New()
            field.SetRegions(list(step.grid.shape))
            field.Allocate()
            itk.array_view_from_image(field)[:] = step.itk_vectors(np.float64)  # image_from_array has no such type
            geometry = itk_geometry(step.grid)
            field.SetOrigin(geometry["Origin"])
            field.SetSpacing(geometry["Spacing"])
            field.SetDirection(itk.matrix_from_array(np.reshape(geometry["Direction"], (dims, dims))))
            part = itk.DisplacementFieldTransform[itk.D, dims].New()
            part.SetDisplacementField(field)
        composite.AddTransform(part)
    return composite
