# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the images of a pair choose, and what is refused."""

import json

import nibabel as nib
import pytest
import torch
from click.testing import CliRunner
from synthetic import deformed_pair, smooth_image

from monai_nodeo.apps.cli import main
from monai_nodeo.data import load_pair
from monai_nodeo.metrics import sd_log_jacobian
from monai_nodeo.registration import PairInferer, RegisterPair, Registration, Settings
from monai_nodeo.registration.choice import information
from monai_nodeo.registration.named_parts import make_loss
from monai_nodeo.registration.optimisation.levels import PairBatch

SHAPES = {2: (48, 44), 3: (24, 22, 20)}


def settings(dims: int, **changes) -> Settings:
    quick = {"initial_transform": None, "shrink_factors": [2, 1], "iterations": [24, 4], "dense_iterations": 0}
    return Settings.preset(spatial_dims=dims, **quick | changes)


def locally_other(image: torch.Tensor) -> torch.Tensor:
    """In stripes as it is and inverted, which no function of the whole image can tell."""
    stripes = (torch.arange(image.shape[-1]) // 6 % 2).float()
    return stripes * image + (1 - stripes) * (1 - image)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_sign_of_the_relation_is_told_from_its_strength(dims):
    image = smooth_image(SHAPES[dims])[None]
    for other, agreement in ((0.3 * image + 0.1, 1), (1 - image, -1)):
        nats, found = information(PairBatch(image, other))
        assert found == pytest.approx(agreement, abs=0.01)
        assert nats > 1
    nats, found = information(PairBatch(image, smooth_image(SHAPES[dims], seed=5)[None]))
    assert abs(found) < 0.7
    assert nats < 0.5
    mask = torch.zeros_like(image)
    mask[..., : image.shape[-1] // 2] = 1
    half = torch.where(mask > 0, image, 1 - image)
    assert information(PairBatch(image, half, fixed_mask=mask))[1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_contrast_chooses_the_similarity(dims):
    fixed, moving, _ = deformed_pair(SHAPES[dims])
    default = settings(dims)
    same = RegisterPair(default, handlers=())(fixed, moving)
    assert (
        same.settings.replace(**{name: getattr(default, name) for name in ("self_tuning", "smoothness_weight")})
        == default
    )
    assert same.accepted
    other = RegisterPair(default, handlers=())(fixed, locally_other(moving))
    assert other.settings.similarity == "mind_ssc"
    assert other.settings.intensity_weight == 0
    assert other.choice is not None
    assert other.choice["agreement"] < 0.7
    # what was chosen is what the settings say: by hand, the same comes out
    again = RegisterPair(other.settings, handlers=())(fixed, locally_other(moving))
    assert torch.equal(again.ddf, other.ddf) or not other.accepted
    assert again.choice is None


def test_where_nothing_leads_back_the_field_is_smoother(monkeypatch):
    monkeypatch.setattr("monai_nodeo.registration.choice._NOISY", 100)
    fixed, moving, _ = deformed_pair(SHAPES[2])
    register = RegisterPair(settings(2), handlers=())
    free = register(fixed, moving)
    monkeypatch.setattr("monai_nodeo.registration.choice._CONSISTENT", 1e-6)
    smooth = register(fixed, moving)
    assert smooth.choice is not None
    assert smooth.choice["strengths"] == [1.0, 3.0, 10.0]
    assert smooth.settings.smoothness_weight > 3 * free.settings.smoothness_weight
    assert smooth.ddf.diff(dim=1).square().mean() < 0.8 * free.ddf.diff(dim=1).square().mean()


def test_where_only_noise_moves_the_field_is_smoother():
    fixed, _, _ = deformed_pair(SHAPES[2])
    draw = torch.Generator().manual_seed(3)
    clean, noisy = ([fixed + sd * torch.randn(fixed.shape, generator=draw) for _ in range(2)] for sd in (0.05, 0.15))
    usual, smooth = (RegisterPair(settings(2), handlers=())(*images) for images in (clean, noisy))
    assert usual.choice["noise"] < 0.8 < smooth.choice["noise"]
    assert smooth.choice["strengths"] == [1.0]  # there and back nothing is far
    assert 3 < smooth.settings.smoothness_weight / usual.settings.smoothness_weight <= 4
    rough = RegisterPair(usual.settings.replace(self_tuning=False), handlers=())(*noisy)
    assert sd_log_jacobian(smooth.displacement[None]) < sd_log_jacobian(rough.displacement[None])


def test_the_strength_that_just_suffices_is_taken(monkeypatch):
    monkeypatch.setattr("monai_nodeo.registration.choice._NOISY", 100)
    fixed, moving, _ = deformed_pair(SHAPES[2])
    register = RegisterPair(settings(2), handlers=())
    free = register(fixed, moving)
    (found,) = free.choice["disagreement_voxels"]
    weights = []
    for allowed in (0.98, 0.7):
        monkeypatch.setattr("monai_nodeo.registration.choice._CONSISTENT", allowed * found)
        chosen = register(fixed, moving)
        assert chosen.choice["strengths"] == [1.0, 3.0]
        weights.append(chosen.settings.smoothness_weight / free.settings.smoothness_weight)
    assert 1 < weights[0] < 1.2 < weights[1] < 3


def test_what_is_asked_for_is_how_smooth_it_is():
    fixed, moving, _ = deformed_pair(SHAPES[2], largest=4.0)
    register = {sd: RegisterPair(settings(2, sd_log_jacobian=sd), handlers=()) for sd in (0.05, 0.1)}
    for sd, one in register.items():
        found = one(fixed, moving)
        assert 0.6 * sd < float(sd_log_jacobian(found.displacement[None])) < 1.2 * sd  # a few iterations come near
        assert len(found.choice["strengths"]) == 1  # no other strength is tried; the similarity is chosen as ever
        assert torch.equal(one(fixed, moving).ddf, found.ddf)  # nothing is left of the last pair


def test_what_is_set_is_not_chosen():
    for changes in ({"similarity": "local_ncc"}, {"smoothness_weight": 0.3}):
        assert not settings(2, **changes).self_tuning
        assert not settings(2).replace(**changes).self_tuning
        assert settings(2, **changes, self_tuning=True).self_tuning
    fixed, moving, _ = deformed_pair(SHAPES[2])
    found = RegisterPair(settings(2), handlers=(), loss=make_loss(settings(2)))(fixed, locally_other(moving))
    assert found.choice is None
    assert found.settings.similarity == "local_ncc"


def test_pairs_of_a_batch_choose_for_themselves():
    fixed, moving, _ = deformed_pair(SHAPES[3])
    pairs = [load_pair({"fixed": fixed, "moving": image}) for image in (moving, locally_other(moving))]
    inferer = PairInferer(settings(3), handlers=())
    together = inferer.register(pairs)
    assert [x.settings.similarity for x in together] == ["local_ncc", "mind_ssc"]
    (alone,) = inferer.register(pairs[1:])
    assert torch.equal(alone.ddf, together[1].ddf)


def test_what_moves_nothing_does_no_harm():
    fixed, _, _ = deformed_pair(SHAPES[2])
    assert RegisterPair(settings(2), handlers=())(fixed, fixed).accepted


@pytest.mark.parametrize("strict", [False, True])
def test_a_deformation_that_cannot_be_defended_is_not_given(strict, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_nodeo.registration.choice._HOPELESS", -1.0)
    for name, image in zip(("f", "m"), deformed_pair(SHAPES[2])[:2], strict=True):
        nib.save(nib.Nifti1Image(image.numpy().squeeze(), torch.eye(4).numpy()), tmp_path / f"{name}.nii.gz")
    f, m, out = (tmp_path / name for name in ("f.nii.gz", "m.nii.gz", "out"))
    words = ["register", "-f", f, "-m", m, "-o", out, "--init", "none", "--set", "iterations=[4,2]", "--no-report"]
    words += ["--strict"] * strict
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == (4 if strict else 0)
    assert "no deformation can be defended: the start alone" in done.output
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["accepted"] is False
    loaded = Registration.load(tmp_path / "out")
    assert not loaded.accepted
    assert not loaded.ddf.any()


def test_what_is_doubtful_is_told_at_once_and_the_report_says_what_was_chosen(tmp_path):
    for name, seed in (("f", 0), ("m", 5)):
        image = smooth_image(SHAPES[2], seed=seed).numpy().squeeze()
        nib.save(nib.Nifti1Image(image, torch.eye(4).numpy()), tmp_path / f"{name}.nii.gz")
    f, m, out = (tmp_path / name for name in ("f.nii.gz", "m.nii.gz", "out"))
    words = ["register", "-f", f, "-m", m, "-o", out, "--init", "none", "--set", "iterations=[20,4]", "--quiet"]
    done = CliRunner().invoke(main, [*map(str, words), "--strict"])
    assert done.exit_code == 4
    figures = json.loads((out / "metrics.json").read_text())
    assert f"with a probability of {figures['wrong_probability']:.0%}; look at the images." in done.stderr
    assert figures["choice"]["smoothness_weight"] == figures["settings"]["smoothness_weight"]
    assert f"a smoothness weight of {figures['choice']['smoothness_weight']:.2g} (" in (out / "report.html").read_text(
        encoding="utf-8"
    )
    assert "of what they bend)" in (out / "report.html").read_text(encoding="utf-8")
    del figures["choice"]["noise"]  # as an earlier version wrote it
    (out / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0
    assert "of what they bend)" not in (out / "report.html").read_text(encoding="utf-8")
