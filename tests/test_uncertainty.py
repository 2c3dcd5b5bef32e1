# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How far results move when what they should not depend on is changed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cohorts import as_it_was
from grids import CORONAL, make_affine
from monai.data import MetaTensor
from synthetic import deformed_pair, quick_settings, save_pair, smooth_image

from monai_nodeo import Registration, register
from monai_nodeo.apps.cli import main
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration import PairInferer
from monai_nodeo.registration.uncertainty import deviation, perturbed

SHAPES = [(33, 29), (15, 17, 13)]
ENOUGH = {"shrink_factors": (2, 1), "iterations": (30, 20)}


def located(shape, **images):
    """On an oblique grid with unequal sides."""
    affine = torch.from_numpy(make_affine((0, 0, 20), (1.5, 2.0, 1.0)))
    return {name: MetaTensor(image, affine=affine) for name, image in images.items()}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request):
    fixed, moving, _ = deformed_pair(request.param, largest=1.5)
    return located(request.param, fixed=fixed, moving=moving)


def registered(pair, count=0, **changes):
    settings = quick_settings(pair["fixed"].ndim - 1, **{**ENOUGH, **changes})
    return register(**pair, settings=settings, device="cpu", handlers=(), uncertainty=count)


@pytest.fixture(scope="module")
def found(pair):
    return registered(pair, 2)


def test_the_result_is_what_it_is_without(pair, found):
    plain = registered(pair)
    assert plain.uncertainty is None
    assert torch.equal(plain.displacement, found.displacement)
    assert found.uncertainty.shape == found.displacement.shape[1:]
    assert 0.01 < found.uncertainty.mean() < 2


@pytest.mark.parametrize("exchanged", [0, 1])
def test_a_changed_pair_is_registered_to_the_same_displacement(found, exchanged):
    changed = perturbed(found, exchanged)
    assert changed.exchanged == bool(exchanged)
    settings = found.settings.replace(initial_transform=None)
    (again,) = PairInferer(settings, handlers=()).register([changed.pair], "cpu")
    grid = found.flow.grid
    unmoved, other = (
        replace(changed, shift=torch.eye(4, dtype=torch.float64)),
        replace(changed, exchanged=not exchanged),
    )
    off, *wrong = (deviation(found, [way.map(again.flow, grid).ddf]).mean() for way in (changed, unmoved, other))
    assert off < 0.8 * min(*wrong, deviation(found, [torch.zeros_like(found.displacement)]).mean())


def test_the_deviation_is_about_the_result_in_millimetres(found):
    one = torch.zeros_like(found.displacement)
    one[1] = 3.0  # voxels of 2 mm
    far = deviation(found, [found.displacement + one, found.displacement])
    torch.testing.assert_close(far, torch.full_like(far, 6 / 2**0.5))


def test_what_the_images_do_not_show_is_uncertain():
    shape = (48, 40)
    fixed = smooth_image(shape, sigma=1.5)
    fixed[:, :, 20:] = fixed[:, :, 20:].mean()
    noisy = [fixed + 0.01 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    uncertainty = registered({"fixed": noisy[0], "moving": noisy[1]}, 4).uncertainty
    assert uncertainty[8:40, 26:36].mean() > 1.5 * uncertainty[8:40, 4:16].mean()


def test_a_loss_without_masks_does_without_weights(pair):
    loss = RegistrationLoss(torch.nn.MSELoss())
    settings = quick_settings(pair["fixed"].ndim - 1)
    found = register(**pair, settings=settings, device="cpu", handlers=(), loss=loss, uncertainty=1)
    assert found.uncertainty.isfinite().all()
    assert perturbed(found, 0, weights=False).pair.fixed.mask is None


def test_a_number_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="uncertainty is -1, expected"):
        PairInferer(quick_settings(2), uncertainty=-1)


def test_the_command_writes_what_is_loaded_and_shown(tmp_path):
    files = save_pair(tmp_path, (33, 29, 1), CORONAL, CORONAL @ np.diag([1.0, 0.9, 1, 1]), units=(1000, 50))
    words = [word for key in ("fixed", "moving") for word in (f"--{key}", files[key])]
    out = tmp_path / "out"
    with as_it_was():
        more = ["--uncertainty", "2", "--preset", "fast", "--device", "cpu"]
        result = CliRunner().invoke(main, ["register", *words, "-o", str(out), *more])
    assert result.exit_code == 0, result.output
    loaded = Registration.load(out)
    assert loaded.uncertainty.shape == loaded.displacement.shape[1:]
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    quantiles = figures["uncertainty_mm"]
    assert f"uncertainty: median {quantiles['median']:.2g} mm" in result.output
    assert 0 < quantiles["median"] <= quantiles["quantile_90"] <= quantiles["quantile_99"]
    assert loaded.figures()["uncertainty_mm"] == pytest.approx(quantiles)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ('data-layer="uncertainty"', 'value="uncertainty"'))
    Registration.save(Registration.load(out, with_pair=False), tmp_path / "copy")
    assert (tmp_path / "copy" / "uncertainty.nii.gz").exists()
    register(files["fixed"], files["moving"], loaded.settings, device="cpu", handlers=()).save(out)
    assert not (out / "uncertainty.nii.gz").exists()
