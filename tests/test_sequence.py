# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import csv
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner
from monai.data import MetaTensor, list_data_collate
from PIL import Image

from monai_nodeo.apps.cli import main
from monai_nodeo.apps.cli.sequence import command
from monai_nodeo.data import PairError, open_series
from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import (
    EulerianVelocity,
    Flow,
    Lattice,
    NodeVelocity,
    ODESolver,
    Periodic,
    RungeKutta,
    VelocityBatch,
    VelocityField,
    carried_to_each,
)
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf
from monai_nodeo.geometry.sampling import sample
from monai_nodeo.registration import (
    PairBatch,
    PairTrainer,
    RegisterSequenced,
    SequenceRegistration,
    Settings,
    register,
    register_sequence,
)
from monai_nodeo.registration.named_parts import make_loss
from monai_nodeo.registration.optimisation.frames import Frames, write_frame

SHORT = Settings.preset(spatial_dims=2, self_tuning=False, shrink_factors=[2], iterations=[25])


def way(t: float) -> float:
    """How far the disc is along the first axis, voxels."""
    return 2 - 2 * np.cos(2 * np.pi * t)


def disc(t: float, shape: tuple[int, ...] = (30, 26), radius: float = 6) -> np.ndarray:
    x, y = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    return 100 / (1 + np.exp(np.hypot(x - way(t), y) - radius)).astype(np.float32)


def centre(shape: tuple[int, ...] = (30, 26)) -> torch.Tensor:
    return torch.tensor([[*[(n - 1) / 2 for n in shape], *[0.0] * (3 - len(shape))]])


def test_one_flow_follows_a_motion_at_times_of_frames_and_between_them():
    times = [1.0, 0.0, 0.15, 0.7, 0.4]  # irregular, in any order
    sequence = register_sequence([disc(t) for t in times], [10 * t for t in times], SHORT, reference=2, handlers=())
    start = centre() + torch.tensor([way(0.15), 0, 0])
    for t in (0.0, 0.3, 0.4, 0.7, 1.0):
        there = sequence.points(start, 10 * t)
        assert there[0, 0] - centre()[0, 0] == pytest.approx(way(t), abs=0.6), t
    apart = sequence.flow(sequence.flow(start, 1.5, 4.2), 4.2, 9.0) - sequence.flow(start, 1.5, 9.0)
    assert apart.abs().max() < 0.02
    before, after = (abs(frame - disc(0.15)).mean() for frame in (disc(0.7), sequence.corrected(3)[0].numpy()))
    assert after < 0.4 * before


@pytest.mark.parametrize("reference", [0, 1])
def test_two_frames_are_registered_as_a_pair(reference):
    """A disc that grows from 4 to 8 voxels."""
    frames = [disc(0, radius=radius) for radius in (4, 8)]
    settings = Settings.preset(spatial_dims=2, dense_iterations=3)
    series = register_sequence(frames, None, settings, reference=reference, handlers=())
    pair = register(frames[reference], frames[1 - reference], settings, handlers=())
    assert (series.displacement(1 - reference) - pair.ddf).abs().max() < 0.02
    assert pair.ddf.abs().max() > 2


def test_the_mean_shape_lies_amid_the_frames_whichever_comes_first():
    times = [0.0, 0.15, 0.4, 0.6]
    frames = [disc(t) for t in times]
    settings = SHORT.replace(iterations=[30])
    found = register_sequence(frames, times, settings, reference="mean", handlers=())
    ways = torch.stack([found.displacement(number) for number in range(4)])
    inside = torch.from_numpy(np.mean(frames, axis=0) > 50)
    middle = np.mean([way(t) for t in times])
    for t, displacement in zip(times, ways, strict=True):
        assert displacement[0, inside].mean() == pytest.approx(way(t) - middle, abs=0.4), t
    assert ways.mean(0).norm(dim=0).max() < 0.01
    spread = torch.stack([found.corrected(number)[0].as_tensor() for number in range(4)]).std(0).mean()
    assert spread < 0.3 * np.std(frames, axis=0, ddof=1).mean()

    other = register_sequence(frames[::-1], times[::-1], settings, reference="mean", handlers=())
    assert other.base == 0
    assert other.times[0] == 0.6
    assert (other.displacement(3) - ways[0])[:, inside].norm(dim=0).mean() < 0.01


def test_the_mean_shape_of_two_frames_is_half_way():
    """A disc that grows from 4 to 8 voxels."""
    frames = [10 * disc(0, radius=radius) for radius in (4, 8)]
    settings = Settings.preset(spatial_dims=2, dense_iterations=3, self_tuning=False)
    found = register_sequence(frames, None, settings, reference="mean", handlers=())
    ways = [found.displacement(number) for number in (0, 1)]
    assert (ways[0] + ways[1]).norm(dim=0).max() < 0.01
    assert ways[1].norm(dim=0).max() > 1
    assert (found.image > 500).sum() == pytest.approx(np.pi * 6**2, rel=0.1)


def test_each_frame_is_the_fixed_image_in_turn(tmp_path):
    files = [tmp_path / "whole" / f"{number}.npy" for number in range(10)]
    for number, file in enumerate(files):
        write_frame(file, torch.full((1, 1, 8, 8), number + 1.0))
    first = PairBatch(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    times = [n / 10 for n in range(11)]
    frames = Frames(first, files, times, in_turn=True)
    seen = list(itertools.islice(frames, 2 * frames.cycle))
    assert frames.cycle == 11
    groups = [[float(batch.fixed.mean()), *batch.moving.mean((1, 2, 3)).tolist()] for batch in seen]
    assert sorted(group[0] for group in groups[:11]) == list(range(11))
    assert {n for group in groups[:11] for n in group[1:]} == set(range(11))
    assert sorted(groups[:11]) == sorted(groups[11:])
    for batch, group in zip(seen, groups, strict=True):
        assert batch.times == tuple(times[int(n)] for n in group)
        assert 3 <= len(set(group)) == len(group) <= 5


@pytest.mark.parametrize("reference", [0, "mean"])
def test_a_periodic_flow_comes_back(reference):
    times = np.arange(6) / 6
    frames = [disc(t) for t in times]
    sequence = register_sequence(frames, times, SHORT, reference=reference, periodic=1.0, handlers=())
    assert sequence.flow.span == (0, 1)
    assert (sequence.flow(centre(), 0.0, 1.0) - centre()).abs().max() < 0.5
    assert (sequence.flow(centre(), 0.0, 0.5) - centre()).norm() > 2
    images = sequence.flow.velocity.images
    assert torch.equal(images[0], images[-1])


def test_frames_that_are_compared_one_by_one_have_the_gradient_of_all_together(tmp_path):
    fixed, *others = (torch.from_numpy(disc(t) / 100)[None, None] for t in (0.0, 0.2, 0.5, 1.0))
    times, loss, solver = (0.3, 0.0, 0.6, 1.0), make_loss(SHORT), ODESolver("midpoint", 2)
    for number, image in enumerate(others):
        write_frame(tmp_path / "whole" / f"{number}.npy", image)
    model = EulerianVelocity(2, fixed.shape[2:], Lattice(keyframes=2))
    torch.nn.init.normal_(model.parametrisation.nodes, std=0.5, generator=torch.Generator().manual_seed(0))
    network, optimizer = VelocityBatch([model]), torch.optim.SGD(model.parameters(), lr=0.1)
    frames = Frames(PairBatch(fixed, fixed), sorted((tmp_path / "whole").iterdir()), times)
    trainer = PairTrainer(frames, network, optimizer, loss, solver, iterations=1)
    trainer.run()
    found = model.parametrisation.nodes.grad.clone()
    optimizer.zero_grad()

    velocity, nodes = network.velocity(), identity_grid(fixed.shape[2:])
    phi = carried_to_each(solver, velocity, nodes, times[0], times[1:])
    ddf, keyframes = (phi_to_ddf(x, 0 * x[:1]) for x in (phi - nodes, torch.cat(velocity.keyframes)))
    terms = loss(sample(torch.cat(others), phi), torch.cat([fixed] * 3), ddf, keyframes.split(1))
    terms["loss"].mean().backward()
    torch.testing.assert_close(found, model.parametrisation.nodes.grad)
    for name, value in terms.items():
        torch.testing.assert_close(trainer.state.output[name], value.mean(0, keepdim=True))


def test_a_series_of_one_image_stays_where_it_is():
    sequence = register_sequence([disc(0)] * 6, None, SHORT, handlers=())
    assert sequence.displacement(3).abs().max() < 0.01


def test_keyframes_are_looked_up_as_hats_say_it():
    images = torch.randn(4, 1, 2, 5, 6)
    velocity = NodeVelocity(images.unbind())
    for t in (0.0, 0.2, 1 / 3, 0.9, 1.0):
        hats = [max(0, 1 - abs(3 * t - k)) for k in range(4)]
        expected = sum(hat * image for hat, image in zip(hats, images, strict=True))
        torch.testing.assert_close(velocity.at_nodes(torch.tensor(t)), expected)
    parametrisation = Periodic(Lattice((4, 5), 3)).fresh((6, 7))
    assert parametrisation().shape == (4, 2, 6, 7)


def test_a_cloud_goes_to_each_time_as_alone():
    velocity = NodeVelocity((0.2 * torch.randn(3, 1, 2, 6, 7)).unbind())
    nodes, solver = identity_grid((6, 7)), ODESolver("midpoint", 64)
    found = carried_to_each(solver, velocity, nodes, 0.5, [0.9, 0.5, 0.1, 0.7])
    for t, item in zip((0.9, 0.1, 0.7), found[[0, 2, 3]], strict=True):
        torch.testing.assert_close(item[None], solver(velocity, nodes, (0.5, t))[-1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1:2], nodes)


def test_a_flow_has_the_times_of_its_span(tmp_path):
    field = VelocityField.of(0.1 * torch.randn(3, 2, 8, 9))
    grid = ImageGrid(np.eye(4), (8, 9))
    short = Flow(field, RungeKutta(), grid, grid)
    long = Flow(field, RungeKutta(), grid, grid, span=(-3.0, 7.0))
    long.save(tmp_path / "flow.safetensors")
    long = Flow.load(tmp_path / "flow.safetensors")
    points = torch.rand(5, 2) * 7
    torch.testing.assert_close(long(points, -1.0, 6.0), short(points, 0.2, 0.9))
    torch.testing.assert_close(long.displacement(), short.displacement())
    with pytest.raises(ValueError, match="from time -3 to 7, got 7.5"):
        long(points, 0.0, 7.5)


def test_the_command_writes_what_itk_reads_and_follows_labels_and_points(tmp_path, caplog):
    times = [0.0, 0.2, 0.5]
    frames = np.stack([disc(t)[..., None] for t in times], -1)
    nib.save(nib.Nifti1Image(frames, np.diag([2, 2, 2, 1.0])), tmp_path / "series.nii.gz")
    nib.save(
        nib.Nifti1Image((disc(0) > 50).astype(np.uint8)[..., None], np.diag([2, 2, 2, 1.0])), tmp_path / "label.nii.gz"
    )
    place = 2 * centre()[0]
    (tmp_path / "points.csv").write_text(f"x,y,z\n{-place[0]},{-place[1]},3\n", encoding="utf-8")
    options = ["--times", "0,0.2,0.5", "--labels", "label.nii.gz", "--points", "points.csv", "--quiet"]
    options += ["--animate", str(tmp_path / "film.gif")]
    settings = [f"--set={name}" for name in ("self_tuning=false", "shrink_factors=[2]", "iterations=[25]")]
    paths = [str(tmp_path / x) if "." in x and x.endswith(("gz", "csv")) else x for x in options]
    out = tmp_path / "out"
    (out / "displacement").mkdir(parents=True)
    (out / "displacement" / "0007.nii.gz").touch()  # of an earlier, longer series
    done = CliRunner().invoke(command, [str(tmp_path / "series.nii.gz"), "-o", str(out), *paths, *settings])
    assert done.exit_code == 0, done.output
    assert not (out / "displacement" / "0007.nii.gz").exists()
    (said,) = caplog.messages
    assert "points.csv: 1 of 1 points lie off the plane of the slice, by up to 3 mm" in said
    assert nib.load(out / "corrected.nii.gz").shape == (30, 26, 1, 3)
    with (out / "labels.csv").open(encoding="utf-8") as file:
        sizes = [float(row["area_mm2"]) for row in csv.DictReader(file)]
    assert sizes[0] == 4 * (disc(0) > 50).sum()
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.15)
    with (out / "points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert -float(rows[-1]["x"]) - float(place[0]) == pytest.approx(2 * way(0.5), abs=1.5)
    field = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "displacement" / "0002.nii.gz")))
    assert -field[..., 13, 14, 0].ravel()[0] == pytest.approx(2 * way(0.5), abs=1.5)  # LPS
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert [row["time"] for row in figures["frames"]] == times
    assert figures["points"][-1]["path_mm"] == pytest.approx(2 * way(0.5), abs=1.5)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in ("frames", "labels", "points"):
        assert f'<section class="card" id="{name}">' in page
    assert "src=" not in page.replace("img-src", "")  # nothing beside it

    assert Flow.load(out / "flow.safetensors").span == (0.0, 0.5)
    points = [str(tmp_path / "points.csv"), "-t", str(out), "-o", str(tmp_path / "moved.csv")]
    looks = [[name, str(out)] for name in ("info", "flow", "report", "volumes", "view")]
    for words in (*looks, ["apply", "-i", *points]):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 1
        assert f"{out} is of a sequence, expected a pair" in refused.output, words


def test_the_command_carries_to_the_mean_shape_what_is_drawn_on_the_first_frame(tmp_path):
    frames = np.stack([disc(t)[..., None] for t in (0.5, 0.0)], -1)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), tmp_path / "series.nii.gz")
    label = (disc(0.5) > 50).astype(np.uint8)[..., None]
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    out, series = tmp_path / "out", str(tmp_path / "series.nii.gz")
    words = [series, "-o", str(out), "--reference", "mean", "--labels", str(tmp_path / "label.nii.gz"), "--quiet"]
    settings = [f"--set={name}" for name in ("self_tuning=false", "shrink_factors=[2]", "iterations=[25]")]
    done = CliRunner().invoke(command, [*words, "--no-report", *settings])
    assert done.exit_code == 0, done.output
    corrected = nib.load(out / "corrected.nii.gz").get_fdata()
    np.testing.assert_allclose(nib.load(out / "mean.nii.gz").get_fdata(), corrected.mean(-1), atol=1e-3)
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["reference"] == "mean"
    with (out / "labels.csv").open(encoding="utf-8") as file:
        assert float(next(csv.DictReader(file))["area_mm2"]) == label.sum()
    refused = CliRunner().invoke(command, [series, "-o", str(out), "--reference", "median"])
    assert refused.exit_code == 2
    assert "'median' is neither mean nor the number of a frame." in refused.output


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (2, "there is no frame 2; the 2 frames"),
        ("median", "reference 'median': expected the number of a frame, or mean"),
    ],
)
def test_a_reference_that_there_is_not_is_refused(reference, message):
    with pytest.raises(PairError, match=message):
        register_sequence([disc(0), disc(1)], None, SHORT, reference=reference, handlers=())


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        ([0], None, "1 frames; expected two"),
        ([0, 1], [0], "2 frames and 1 times"),
        ([0, 1], [3, 3], "not all finite and different"),
    ],
)
def test_what_is_wrong_with_a_series_is_told(frames, times, message):
    with pytest.raises(PairError, match=message):
        open_series([disc(t) for t in frames], times)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([disc(0), 0 * disc(0)], "frame 1 of the series shows nothing on the grid of the reference frame"),
        ([0 * disc(0), disc(0)], "frame 0 of the series gives the grid and shows nothing; take another one"),
        (
            [disc(0), np.stack([disc(0)] * 20, -1)],
            "frame 1 of the series: shape .* is a volume, and this run",
        ),
        (
            [torch.from_numpy(x) for x in (disc(0)[None], np.stack([disc(0)] * 2))],
            "frame 1 of the series has 2 channels and the reference frame has 1",
        ),
    ],
)
def test_what_is_wrong_with_a_frame_is_told_in_the_words_of_a_series(frames, message):
    with pytest.raises(PairError, match=message):
        register_sequence(frames, None, SHORT, handlers=())


def test_times_of_a_header_are_the_decimals_that_were_meant(tmp_path):
    series = nib.Nifti1Image(np.zeros((5, 6, 1, 8), np.float32), np.eye(4))
    series.header["pixdim"][4] = 0.1  # a float32
    nib.save(series, tmp_path / "series.nii.gz")
    assert open_series(tmp_path / "series.nii.gz").times == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def test_a_series_is_read_from_a_table_or_a_folder(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(3):
        nib.save(nib.Nifti1Image(disc(number / 2), np.eye(4)), tmp_path / "frames" / f"{number}.nii")
    (tmp_path / "list.csv").write_text("image,time\nframes/2.nii,0.7\nframes/0.nii,0.1\n", encoding="utf-8")
    assert open_series(tmp_path / "frames").times == (0, 1, 2)
    listed = open_series(tmp_path / "list.csv")
    assert listed.times == (0.7, 0.1)
    np.testing.assert_array_equal(listed.frame(0)[0].numpy(), disc(1.0))


def test_a_step_of_a_compose_corrects_a_series():
    times = [0.0, 0.25, 0.5]
    series = MetaTensor(torch.from_numpy(np.stack([disc(t) for t in times])), affine=np.diag([2, 2, 2, 1.0]))
    step = RegisterSequenced("cine", settings=SHORT, handlers=())
    found = step({"cine": series, "times": times, "label": (series[:1] > 50).float()})
    assert found["cine"].shape == series.shape
    torch.testing.assert_close(found["cine"].affine, series.affine)
    before, after = (abs(x[2] - series[0]).mean() for x in (series, found["cine"]))
    assert after < 0.4 * before
    assert found["sequence"].times == tuple(times)
    assert found["sequence"].label is not None
    assert len(list_data_collate([{"sequence": found["sequence"]}] * 2)["sequence"]) == 2


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)], ids=["2D", "3D"])
def test_strains_are_those_of_green_and_lagrange_in_millimetres(shape):
    sides = np.array([2.0, 1.0, 0.5])
    grid = ImageGrid(np.diag([*sides, 1.0]), (*shape, 1)[:3])
    field = VelocityField(len(shape), shape)
    label = MetaTensor((torch.rand(1, *shape) > 0.5).float())
    series = open_series([np.zeros(shape, np.float32)] * 2)
    flow = Flow(field, RungeKutta(), grid, grid)
    found = SequenceRegistration(flow, series, 0, None, label, {}, SHORT, None, 1.0)
    matrix = np.eye(len(shape))
    matrix[0, 1] = 0.3  # a shear in mm
    strains = np.linalg.eigvalsh((matrix.T @ matrix - np.eye(len(shape))) / 2)
    in_voxels = (matrix - np.eye(len(shape))) * sides[: len(shape)] / sides[: len(shape), None]
    way = torch.from_numpy(np.einsum("ij,j...->i...", in_voxels, np.indices(shape))).float()
    label[..., -1:] = 0  # no difference ahead
    label[:, -1:] = 0
    label[:, :, -1:] = 0
    assert found.label_strains(way)[1] == pytest.approx((strains[-1], strains[0]), abs=1e-5)
