# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import GRIDS, VOLUME, interior, make_ddf, make_start, world
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.files import Affine, Displacement, Transform
from monai_nodeo.flows.field_inversion import Inversion, invert, invert_transform
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import compose

SHAPES = [(31, 37), (17, 19, 23)]


def residual(inversion: Inversion) -> Tensor:
    return torch.linalg.vector_norm(inversion.left, dim=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_are_the_identity(shape):
    ddf = smooth_ddf(shape, largest=4.0, sigma=4.0)
    assert jacobian_determinant(ddf[None]).min() > 0
    inversion = invert(ddf)
    assert residual(inversion).max() < 2e-3
    assert not invert(torch.full_like(ddf, 3.0)).inside.all()  # what comes from outside has no way back
    there_and_back = compose(ddf[None], inversion.ddf[None])[0]
    assert interior(there_and_back[0].numpy(), 4).max() < 2e-3
    # the other way round, up to what a linear interpolation of the inverse can say
    back_and_there = compose(inversion.ddf[None], ddf[None])[0]
    assert np.abs(interior(back_and_there[0].numpy(), 4)).max() < 0.1


def test_of_several_ways_back_from_a_fold_one_is_found():
    ddf = torch.zeros(2, 40, 30)
    ddf[0, 18:22] = torch.tensor([4.0, 1.5, -1.5, -4.0]).view(-1, 1)  # the order of these rows is turned round
    assert jacobian_determinant(ddf[None]).min() < 0
    assert residual(invert(ddf)).max() < 2e-3


def test_field_without_an_inverse_converges_nowhere_near():
    position = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij"))
    inversion = invert(torch.tensor([8.0, 6.0]).view(2, 1, 1) - position)
    assert (residual(inversion) < 2e-3)[inversion.inside].sum() <= 1  # only the point itself is reached


def test_simpleitk_finds_the_same_inverse():
    ddf = torch.from_numpy(make_ddf(VOLUME))
    ours = invert(ddf).ddf.numpy()
    field = Displacement(VOLUME, ddf.numpy()).itk.GetDisplacementField()
    theirs = sitk.InvertDisplacementField(field, 50, 1e-5, 1e-5, False)
    found = Displacement.from_itk_field("theirs", theirs).ddf
    assert np.abs(interior(found[0] - ours[0])).max() < 0.02


@pytest.mark.parametrize("kind", GRIDS)
def test_registration_and_its_inverse_bring_points_home(kind):
    grid = GRIDS[kind]
    transform = Transform.of_registration(make_ddf(grid), grid, make_start(grid))
    middle = world(
        grid, np.random.default_rng(3).integers(8, np.array(grid.spatial_shape) - 8, (30, grid.spatial_dims))
    )
    inverse, inversions = invert_transform(transform)
    assert [type(step) for step in inverse.steps] == [Affine, Displacement]
    ((step, inversion),) = inversions
    assert step is transform.steps[0]
    assert residual(inversion).max() < 2e-3
    there = transform.map_points(middle)
    assert np.abs(there - middle).max() > 1
    np.testing.assert_allclose(inverse.map_points(there), middle, rtol=0, atol=0.15)


def test_composition_is_the_one_of_itk():
    inner, outer = (make_ddf(VOLUME, seed) for seed in (0, 7))
    ours = compose(torch.from_numpy(outer)[None], torch.from_numpy(inner)[None])[0].numpy()
    steps = Transform((Displacement(VOLUME, inner), Displacement(VOLUME, outer)))
    theirs = steps.displacement_on("both", VOLUME)
    np.testing.assert_allclose(interior(theirs[0]), interior(ours[0]), rtol=0, atol=1e-3)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"ddf must be \(D, \*spatial\)"):
        invert(torch.zeros(1, 3, 9, 11, 13))
