# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from monai_nodeo.registration.preparation.slice_interpolation import between_slices

PLACES = [0.0, 1.0, 2.0]


def tube(places: list[float], shape: tuple[int, int] = (40, 44), scale: float = 1.0) -> Tensor:
    """Slices of a slanted tube with soft walls, (N, 1, X, Y): from one whole place to the next it moves by 4 pixels."""
    x, y = torch.meshgrid(*[torch.arange(n).float() for n in shape], indexing="ij")
    discs = [torch.sigmoid(8 - ((x - 14 - 4 * z).square() + (y - 22).square()).sqrt()) for z in places]
    return scale * torch.stack(discs).unsqueeze(1)


def test_a_slice_lies_at_its_own_place():
    slices = tube(PLACES)
    torch.testing.assert_close(between_slices(slices, (1.0, 1.0), [0.0])[:, 0], slices[:-1])


@pytest.mark.parametrize("case", ["air", "small"])
def test_where_nothing_can_be_registered_it_is_the_mean(case):
    slices = tube(PLACES) if case == "air" else tube(PLACES, (7, 44))
    if case == "air":
        slices[1] = 0
    expected = (slices[:-1] + slices[1:]) / 2
    torch.testing.assert_close(between_slices(slices, (1.0, 1.0), [0.5])[:, 0], expected)


def test_pixels_may_be_longer_than_wide():
    slices, truth = (tube(places)[..., ::2] for places in (PLACES, [0.5, 1.5]))
    found = between_slices(slices, (1.0, 2.0), [0.5])[:, 0]
    assert (found - truth).square().mean() < 0.2 * ((slices[:-1] + slices[1:]) / 2 - truth).square().mean()
