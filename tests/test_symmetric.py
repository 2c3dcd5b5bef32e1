# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""No image of a pair is preferred: exchanged, they give the inverse."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from grids import make_affine
from monai.data import MetaTensor
from scans import load
from synthetic import deformed_pair, quick_settings, save_pair, smooth_image

from monai_nodeo import Registration, register
from monai_nodeo.apps.cli import main
from monai_nodeo.data import PairError
from monai_nodeo.data.start import Start
from monai_nodeo.flows import NodeVelocity
from monai_nodeo.registration import Settings, SettingsError, register_sequence
from monai_nodeo.registration.preparation import symmetric
from monai_nodeo.registration.preparation.symmetric import half_of, mean_grid

SHAPES = [(37, 32), (17, 19, 18)]
LONG_ENOUGH = {"shrink_factors": (2, 1), "iterations": (15, 8), "learning_rate": 0.3}
EYE = torch.eye(4, dtype=torch.float64)


def visits(shape):
    """Two images that differ by a deformation, the second one on a grid that is turned and shifted a little."""
    fixed, moving, _ = deformed_pair(shape, largest=1.5)
    here, there = make_affine((0, 0, 0.3), (1.5, 1.5, 1.5)), make_affine((0, 0, 0.36), (1.5, 1.5, 1.5))
    middle = np.array([*((n - 1) / 2 for n in shape), 0][:3])
    there[:3, 3] = here[:3, 3] + (here - there)[:3, :3] @ middle + [0.4, -0.3, 0]
    return [MetaTensor(image, affine=torch.from_numpy(place)) for image, place in ((fixed, here), (moving, there))]


def away(shape, **changes):
    """Distance in voxels between where points of the foreground go, and where the exchanged pair takes them back."""
    one, other = visits(shape)
    settings = quick_settings(len(shape), **{**LONG_ENOUGH, **changes})
    there = register(one, other, settings, device="cpu", handlers=())
    back = register(other, one, settings, device="cpu", handlers=())
    inside = torch.stack(torch.meshgrid(*[torch.arange(4.0, n - 4) for n in shape], indexing="ij")).flatten(1)
    affine = one.affine.double()
    points = (affine[:3, : len(shape)] @ inside.double() + affine[:3, 3:]).T
    found = there.points(points)
    assert (found - points).norm(dim=1).mean() > 0.3  # there is something to find
    return (back.points(found) - points).norm(dim=1) / 1.5, there


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (SHAPES[0], {"self_tuning": True}),
        (SHAPES[0], {"keyframes": 2, "solver": "midpoint"}),
        (SHAPES[1], {"point_spacing": 1.5, "dense_iterations": 3}),
    ],
    ids=["2D", "keyframes", "3D"],
)
def test_exchanged_images_give_the_inverse(shape, changes):
    distance, there = away(shape, symmetric=True, **changes)
    assert distance.max() < 0.05
    assert there.certificate.invertible
    assert there.similarity[1] < 0.7 * there.similarity[0]
    assert away(shape, **changes)[0].max() > 0.1


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_the_mean_grid_prefers_no_image(shape):
    one, other = visits(shape)
    affine, size = mean_grid(one, other, EYE)
    assert size == shape
    back, same_size = mean_grid(other, one, EYE)
    torch.testing.assert_close(back, affine)
    assert same_size == size
    centre = torch.tensor([*((n - 1) / 2 for n in shape), 0, 0][:3] + [1.0], dtype=torch.float64)
    middles = [image.affine.double() @ centre for image in (one, other)]
    torch.testing.assert_close(affine @ centre, sum(middles) / 2)
    # the same voxels in another order are the same grid
    flipped = one.affine.double().clone()
    flipped[:3, 3] += flipped[:3, 0] * (shape[0] - 1)
    flipped[:3, 0] *= -1
    turned = MetaTensor(one.as_tensor().flip(1).transpose(1, 2), affine=flipped[:, [1, 0, 2, 3]])
    affine, size = mean_grid(one, turned, EYE)
    torch.testing.assert_close(affine, one.affine.double())
    assert size == shape


def test_a_start_is_halved():
    turn = torch.from_numpy(make_affine((0.2, -0.1, 0.4), (1, 1, 1)))
    half = half_of(turn)
    torch.testing.assert_close(half @ half, turn)
    torch.testing.assert_close(half_of(torch.linalg.inv(turn)), torch.linalg.inv(half))
    turn[0, 0] *= 1.1
    with pytest.raises(PairError, match="symmetric: the start is not rigid"):
        half_of(turn)


def test_the_start_of_exchanged_images_is_the_inverse(monkeypatch):
    one, other = (MetaTensor(smooth_image((20, 16), seed), affine=EYE) for seed in (0, 1))
    turns = [torch.from_numpy(make_affine((0, 0, angle), (1, 1, 1))) for angle in (0.1, -0.2)]

    def found(pair, initial_transform, rigid):
        first = torch.equal(pair.fixed.image.as_tensor(), one.as_tensor())
        return Start(turns[0 if first else 1], "rigid", {"headers": 0.5, "rigid": 0.6 if first else 0.7})

    monkeypatch.setattr(symmetric, "find_start", found)
    pair = load(one, other)
    starts = [symmetric.symmetric_start(way, "auto").affine for way in (pair, symmetric.exchanged(pair))]
    torch.testing.assert_close(starts[1], turns[1])  # that explains the images better
    torch.testing.assert_close(starts[0], torch.linalg.inv(turns[1]))


def test_the_way_back_is_the_inverse_of_a_velocity_that_changes():
    field = NodeVelocity([torch.full((1, 2, 4, 4), value) for value in (1.0, 3.0)]).both_ways()
    there, back = field.at_nodes(torch.tensor(0.25)).split(1)
    assert there.unique().item() == 1.5
    assert back.unique().item() == -2.5


def test_the_command_writes_a_result_that_can_be_read(tmp_path):
    row = save_pair(tmp_path, (33, 29, 1), np.eye(4))
    words = ["register", "-f", row["fixed"], "-m", row["moving"], "-o", str(tmp_path / "out"), "--symmetric"]
    done = CliRunner().invoke(main, [*words, "--init", "none", "--preset", "fast", "--no-report", "--quiet"])
    assert done.exit_code == 0, done.output
    found = Registration.load(tmp_path / "out")
    assert found.settings.symmetric
    assert found.certificate.invertible


def test_what_cannot_be_symmetric_is_refused():
    one, other = visits(SHAPES[0])
    with pytest.raises(PairError, match="no velocity of places"):
        register(one, other, quick_settings(2, velocity="nodeo", symmetric=True, shrink_factors=(1,), iterations=(1,)))
    frames = [np.zeros((12, 12), np.float32)] * 2
    with pytest.raises(SettingsError, match="symmetric is for pairs"):
        register_sequence(frames, [0, 1], Settings.preset(spatial_dims=2, symmetric=True), handlers=())
