# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Several contrasts of one side, colours, and labels that pull."""

import json
import logging
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from monai.losses import DiceLoss
from PIL import Image
from synthetic import deformed_pair, quick_settings, save_pair, smooth_image
from torch.nn import functional as F

from monai_nodeo import Registration, register
from monai_nodeo.apps import NodeoWorkflow
from monai_nodeo.apps.cli import main
from monai_nodeo.apps.cohort.inputs import fingerprints
from monai_nodeo.data import PairError, as_image, load_datalist, load_pair
from monai_nodeo.data.intensity import to_unit_range
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.files import ImageGrid, background
from monai_nodeo.geometry.coordinates import identity_grid
from monai_nodeo.geometry.sampling import sample
from monai_nodeo.losses import ChannelLoss, LocalNCCLoss, MINDSSCLoss, label_loss, label_shares
from monai_nodeo.registration import PairInferer

SHAPES = {2: (24, 20), 3: (16, 14, 12)}
both = pytest.mark.parametrize("dims", [2, 3])


def contrasts(dims: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fixed and moving images, the second of each an image of its own."""
    one, other = (deformed_pair(SHAPES[dims], seed + n) for n in (0, 5))
    return [one[0][0].numpy(), other[0][0].numpy()], [one[1][0].numpy(), other[1][0].numpy()]


@both
def test_a_list_of_images_makes_channels_on_the_grid_of_the_first(dims, save, caplog):
    caplog.set_level(logging.INFO)
    one, two = (smooth_image(SHAPES[dims], seed)[0].numpy() for seed in (1, 2))
    paths = [save("a.nii.gz", one), save("b.nii.gz", two.astype(np.float64))]
    pair = load_pair({"fixed": paths, "moving": [one, two]})
    for scan in (pair.fixed, pair.moving):
        np.testing.assert_array_equal(scan.image.numpy(), np.stack([one, two]))
    assert dict(pair.sources) == {"fixed": paths}
    assert not caplog.messages
    half = np.diag([*[2.0] * dims, *[1.0] * (4 - dims)])  # every second voxel, in its place
    paths[1] = save("half.nii.gz", two[(slice(None, None, 2),) * dims], half)
    found = load_pair({"fixed": paths, "moving": [one, two]}).fixed.image[1].numpy()
    np.testing.assert_allclose(found[(slice(None, -1, 2),) * dims], two[(slice(None, -1, 2),) * dims], atol=1e-6)
    assert caplog.messages == [f"fixed {paths[1]}: on another grid than the first image {paths[0]}, resampled to it."]


@pytest.mark.parametrize(
    ("fixed", "moving", "told"),
    [
        (["a", "b"], ["a"], "has 1 channels and"),
        (["a", "gone"], ["a", "b"], "gone.nii.gz: there is no such file"),
        (["a", "away"], ["a", "b"], "away.nii.gz: shows nothing on the grid of the first image"),
        ([], ["a"], "fixed: no path was given"),
    ],
)
def test_what_does_not_fit_together_is_told(fixed, moving, told, save, tmp_path):
    image = smooth_image(SHAPES[2])[0].numpy()
    for name in "ab":
        save(f"{name}.nii.gz", image)
    save("away.nii.gz", image, np.array([[1, 0, 0, 99.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    row = {key: [str(tmp_path / f"{n}.nii.gz") for n in names] for key, names in (("fixed", fixed), ("moving", moving))}
    with pytest.raises(PairError, match=told):
        load_pair(row)


@both
def test_a_channel_of_weight_0_is_as_if_it_were_not_there(dims):
    (fixed, _), (moving, _) = contrasts(dims)
    rubbish = np.random.default_rng(0).normal(size=fixed.shape)
    settings = quick_settings(dims, self_tuning=dims == 2, initial_transform="auto" if dims == 2 else None)
    alone = register(fixed, moving, settings, handlers=())
    weighted = settings.replace(channel_weights=[0, 2])
    found = register([rubbish, fixed], [1 - rubbish, moving], weighted, handlers=())
    assert torch.equal(found.ddf, alone.ddf)
    assert found.choice == alone.choice
    assert found.settings.channel_weights == (0, 2)
    assert found.warped.shape == (2, *fixed.shape)
    with pytest.raises(PairError, match="1 channel, and channel_weights are for 2; give one for each"):
        register(fixed, moving, weighted, handlers=())


@both
def test_each_channel_has_a_loss_and_a_weight(dims):
    fixed, moving = (torch.from_numpy(np.stack(x))[None].repeat(2, *[1] * (dims + 1)) for x in contrasts(dims))
    moving[1] = moving[1].flip(1)
    moving.requires_grad_()
    losses, spacing = (LocalNCCLoss(dims, 5), MINDSSCLoss(dims)), (1.0, 2.0, 1.0)[:dims]
    loss = ChannelLoss(losses, (3, 1))
    parts = [one.of_each(moving[:, [c]], fixed[:, [c]], None, spacing) for c, one in enumerate(losses)]
    expected = 0.75 * parts[0] + 0.25 * parts[1]
    for of_each in (loss.of_each, loss.of_each, pickle.loads(pickle.dumps(loss)).of_each):  # also of a target it knows
        torch.testing.assert_close(of_each(moving, fixed, None, spacing), expected)
    gradients = [torch.autograd.grad(x.sum(), moving, retain_graph=True)[0] for x in (expected, loss(moving, fixed))]
    assert all(gradient.abs().amax() > 0 for gradient in gradients)
    fixed[:, 0] = fixed[:, 1]
    assert not torch.equal(loss.of_each(moving, fixed, None, spacing), expected)
    for wrong in ((1.0,), (0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="expected one each"):
            ChannelLoss(losses, wrong)
    with pytest.raises(ValueError, match="with 2 channels"):
        loss(moving[:, :1], fixed[:, :1])


def test_contrast_chooses_the_similarity_of_each_channel():
    one, other = (deformed_pair((48, 44), seed, largest=1.0) for seed in (0, 5))
    stripes = torch.arange(44) // 6 % 2
    fixed = [one[0][0].numpy(), other[0][0].numpy()]
    moving = [one[1][0].numpy(), (stripes * other[1] + (1 - stripes) * (1 - other[1]))[0].numpy()]
    found = register(fixed, moving, quick_settings(2, self_tuning=True), handlers=())
    assert found.settings.similarity == "local_ncc,mind_ssc"
    again = register(fixed, moving, found.settings.replace(self_tuning=False), handlers=())
    assert torch.equal(again.ddf, found.ddf)
    loss = PairInferer(found.settings).components.loss  # the intensity term is of the first one alone
    intensity = loss.terms["image"]["intensity"]
    one, other = (torch.from_numpy(np.stack(x))[None] for x in (fixed, moving))
    torch.testing.assert_close(intensity(other, one), intensity.losses[0](other[:, :1], one[:, :1]))


def test_all_channels_are_written_by_every_way_in(tmp_path):
    paths = {k: [str(tmp_path / f"{k}{n}.nii.gz") for n in (1, 2)] for k in ("fixed", "moving")}
    for key, images in zip(paths, contrasts(2), strict=True):
        for path, image in zip(paths[key], images, strict=True):
            nib.save(nib.Nifti1Image(image, np.diag([1.5, 2, 1, 1])), path)
    short = {"initial_transform": "none", "shrink_factors": [1], "iterations": [2], "dense_iterations": 0}
    words = [w for k, v in short.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    words += [w for key, option in (("fixed", "-f"), ("moving", "-m")) for path in paths[key] for w in (option, path)]
    words += ["--channel-weights", "1,.5", "--no-report", "--device", "cpu"]
    told = CliRunner().invoke(main, ["register", "-o", str(tmp_path / "out"), *words])
    assert told.exit_code == 0, told.output
    loaded = Registration.load(tmp_path / "out")
    assert loaded.settings.channel_weights == (1, 0.5)
    for name, channel in zip(("warped", "warped_2"), loaded.warped, strict=True):
        np.testing.assert_allclose(as_image(tmp_path / "out" / f"{name}.nii.gz")[0], channel, atol=1e-5)
    listed = [{key: [Path(path).name for path in of] for key, of in paths.items()}]
    (tmp_path / "pairs.json").write_text(json.dumps(listed), encoding="utf-8")
    (row,) = load_datalist(tmp_path / "pairs.json")
    assert row == {**paths, "id": "moving1_to_fixed1"}
    assert [print_["path"] for print_ in fingerprints(row).values()] == [*paths["fixed"], *paths["moving"]]
    override = {f"settings#{name}": value for name, value in {**short, "channel_weights": [1, 0.5]}.items()}
    workflow = NodeoWorkflow(
        logging_file=False, output_dir=str(tmp_path / "bundle"), device="cpu", report=False, **paths, **override
    )
    workflow.initialize()
    workflow.run()
    assert torch.equal(Registration.load(tmp_path / "bundle" / row["id"]).ddf, loaded.ddf)
    Registration.load(tmp_path / "out").save(tmp_path / "bundle" / row["id"])
    register(paths["fixed"][0], paths["moving"][0], quick_settings(2), handlers=()).save(tmp_path / "out")
    assert not (tmp_path / "out" / "warped_2.nii.gz").exists()  # of the earlier run


@pytest.mark.parametrize("name", ["c.png", "a.png", "c.nii.gz"])
def test_colours_are_channels_and_white_is_nothing(name, tmp_path):
    colours = np.full((20, 24, 3), 250, np.uint8)
    colours[6:14, 5:18] = np.random.default_rng(0).integers(0, 200, (8, 13, 3))
    colours[0, 0] = colours[3, 3] = 0
    if name.endswith(".png"):
        alpha = np.full((20, 24, 1), 255, np.uint8)
        values = np.concatenate([colours, alpha], 2) if name == "a.png" else colours
        Image.fromarray(values.transpose(1, 0, 2).copy()).save(tmp_path / name)
    else:
        kind = np.dtype([(c, "u1") for c in "RGB"])
        nib.save(nib.Nifti1Image(colours.view(kind)[..., 0][..., None], np.eye(4)), tmp_path / name)
    pair = load_pair({"fixed": tmp_path / name, "moving": tmp_path / name})
    np.testing.assert_array_equal(pair.fixed.image.numpy(), colours.transpose(2, 0, 1))
    grid = ImageGrid.from_file(tmp_path / name)
    assert grid.shape == ((20, 24) if name.endswith(".png") else (20, 24, 1))
    assert (to_unit_range(pair.fixed.image)[:, 2, 1:-1] == 0).all()
    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3] = 30.0  # none of it is seen
    assert (on_grid_of(pair.fixed.image, pair.moving.image, shift) == 250).all()


@pytest.mark.parametrize(
    ("border", "expected"), [(0.0, 0.0), (7.0, 7.0), (9.95, 10.0), (None, 0.0)], ids=["low", "grey", "white", "none"]
)
@both
def test_the_background_is_what_prevails_along_the_border(dims, border, expected):
    image = 10 * smooth_image(SHAPES[dims], sigma=1.0)[0].numpy()
    if border is not None:
        inner = image[(slice(1, -1),) * dims].copy()
        image[:] = border
        image[(slice(1, -1),) * dims] = inner
        image[(0,) * dims] = np.nan if border == 7 else 0.0
        image[(1,) * dims] = 0
        image[(2,) * dims] = 10
    assert background(image) == pytest.approx(expected, abs=0.06)


@both
def test_labels_overlap_as_monai_has_it_and_pull(dims, tmp_path):
    maps = torch.stack([(5 * smooth_image(SHAPES[dims], seed)).round() for seed in (1, 2)])
    count = int(maps.max())
    phi = identity_grid(SHAPES[dims], torch.device("cpu"), torch.float32)
    phi = (0.9 * phi).expand(2, *phi.shape[1:]).clone().requires_grad_()
    moving, fixed = (label_shares(x, SHAPES[dims]) for x in (maps[:, 0], maps.flip(0)[:, 0]))
    whole = [F.one_hot(x[:, 0].long(), count + 1).movedim(-1, 1)[:, 1:].float() for x in (maps, maps.flip(0))]
    expected = DiceLoss(reduction="none")(sample(whole[0], phi), whole[1]).flatten(1).mean(1)
    found = label_loss(moving, fixed, phi)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.sum(), phi)[0] for x in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)

    row = save_pair(tmp_path, SHAPES[dims] if dims == 3 else (*SHAPES[2], 1), np.diag([1.5, 2, 1, 1]))
    images, labels = ({k: v for k, v in row.items() if k.endswith("label") == of} for of in (False, True))
    settings = quick_settings(dims, iterations=(8, 4))
    unmoved = row | {"moving": row["fixed"]}  # the images say that nothing moves, the labels that they do
    dice = [
        register(**unmoved, settings=settings.replace(label_weight=weight), handlers=()).figures()["after"]["dice_mean"]
        for weight in (0, 3)
    ]
    assert dice[1] > dice[0]
    with pytest.raises(PairError, match="there are no label maps, and label_weight is above 0"):
        register(**images, settings=settings.replace(label_weight=1), handlers=())
    other = nib.nifti1.load(labels["moving_label"])
    nib.save(nib.Nifti1Image(9 * other.get_fdata(), other.affine), tmp_path / "9.nii.gz")
    row["moving_label"] = str(tmp_path / "9.nii.gz")
    with pytest.raises(PairError, match="9.nii.gz: on the fixed grid they have no label in common"):
        register(**row, settings=settings.replace(label_weight=1), handlers=())
