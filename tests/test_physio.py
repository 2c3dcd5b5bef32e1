# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The backend for monai-physio, which is far too large for a test's dependency: a stand-in has its contract."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic import deformed_pair, quick_settings

from monai_nodeo.data import as_image
from monai_nodeo.files import Affine, Displacement, ImageGrid, Transform
from monai_nodeo.files.itk_python import itk_python_transform

itk = pytest.importorskip("itk", reason="itk is not installed")

# SWIG's types warn when the libraries of itk are loaded, and the process dies if that is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


class RegisterImagesBase:
    """What monai_physio's has: attributes that the backend reads, the method that it leaves to it, and the calls."""

    def __init__(self, log_level=20):
        self.fixed_image = self.fixed_image_pre = self.fixed_mask = self.fixed_labelmap = None
        self.fast_mode = False

    def set_fixed_image(self, fixed_image):
        self.fixed_image, self.fixed_image_pre = fixed_image, None

    def preprocess(self, image, modality="ct"):
        return image

    def registration_method(self, moving_image, moving_mask=None, moving_labelmap=None, moving_image_pre=None):
        raise NotImplementedError

    def register(self, moving_image, moving_mask=None, moving_labelmap=None, moving_image_pre=None):
        if self.fixed_image_pre is None:
            self.fixed_image_pre = self.preprocess(self.fixed_image)
        return self.registration_method(
            moving_image,
            moving_mask=moving_mask,
            moving_labelmap=moving_labelmap,
            moving_image_pre=self.preprocess(moving_image) if moving_image_pre is None else moving_image_pre,
        )


@pytest.fixture
def registrar(monkeypatch: pytest.MonkeyPatch) -> Any:
    package = ModuleType("monai_physio")
    package.RegisterImagesBase = RegisterImagesBase
    monkeypatch.setitem(sys.modules, "monai_physio", package)
    monkeypatch.delitem(sys.modules, "monai_nodeo.apps.physio", raising=False)
    return importlib.import_module("monai_nodeo.apps.physio").RegisterImagesNodeo(log_level=30)


DIRECTION = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])


def itk_image(values: np.ndarray):
    """(X, Y, Z), turned, in LPS mm."""
    image = itk.image_from_array(np.ascontiguousarray(values.T.astype(np.float32)))
    image.SetSpacing([1.5, 1.0, 2.0])
    image.SetOrigin([30.0, -20.0, 10.0])
    image.SetDirection(itk.matrix_from_array(DIRECTION))
    return image


@pytest.mark.long  # the libraries of itk take long to load
def test_the_transforms_bring_each_image_to_the_other_s_grid(registrar):
    fixed, moving, _ = (x.numpy() for x in deformed_pair((20, 18, 16)))
    images = itk_image(fixed[0]), itk_image(moving[0])
    registrar.settings = quick_settings(3, iterations=(30, 20))
    with pytest.raises(ValueError, match="call set_fixed_image first"):
        registrar.register(images[1])
    registrar.set_fixed_image(images[0])
    found = registrar.register(images[1])
    assert set(found) == {"fixed_to_moving_transform", "moving_to_fixed_transform", "loss"}
    assert np.isfinite(found["loss"])
    there, back = found["fixed_to_moving_transform"], found["moving_to_fixed_transform"]
    inner = (slice(3, -3),) * 3
    for transform, (target, source) in ((there, images), (back, images[::-1])):
        warped = itk.resample_image_filter(
            source, transform=transform, use_reference_image=True, reference_image=target
        )
        values = [itk.array_from_image(image)[inner].ravel() for image in (target, source, warped)]
        _, before, after = np.corrcoef(values)[0]
        assert after > 0.95 > before
    point = list(images[0].TransformIndexToPhysicalPoint([9, 8, 7]))
    np.testing.assert_allclose(back.TransformPoint(there.TransformPoint(point)), point, atol=0.1)


def test_an_image_of_itk_lies_where_simpleitk_sees_it():
    values = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    same = sitk.GetImageFromArray(values.T)
    same.SetSpacing([1.5, 1.0, 2.0])
    same.SetOrigin([30.0, -20.0, 10.0])
    same.SetDirection(DIRECTION.ravel())
    mine, theirs = as_image(itk_image(values)), as_image(same)
    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    np.testing.assert_allclose(mine.affine, theirs.affine)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(7, 6, 5), (7, 6)])
def test_steps_of_a_transform_act_in_their_order_in_itk(shape):
    dims = len(shape)
    matrix = np.eye(4)
    matrix[:dims, :dims] += 0.1 * np.arange(dims**2).reshape(dims, dims)
    matrix[:dims, 3] = np.arange(1, dims + 1)
    grid = ImageGrid(np.diag([-2.0, 1.5, 1.0, 1.0]), shape)
    field = np.random.default_rng(0).normal(size=(dims, *shape))
    transform = Transform((Displacement(grid, field), Affine(matrix, dims)))
    lps = np.array([4.0, -3.0, 2.0])
    expected = transform.map_points((lps * [-1, -1, 1])[None])[0] * [-1, -1, 1]
    found = itk_python_transform(transform).TransformPoint(lps[:dims].tolist())
    np.testing.assert_allclose(found, expected[:dims])
    assert np.abs(expected[:dims] - lps[:dims]).min() > 0.1
