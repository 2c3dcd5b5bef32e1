# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finished import FALLING, save_result
from monai.data import MetaTensor
from scipy.ndimage import shift
from synthetic import deformed_pair, smooth_image

from monai_nodeo import Registration, Settings, register
from monai_nodeo.apps.cli import main
from monai_nodeo.data import load_pair
from monai_nodeo.data.examples import ExamplePair, example_pair
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.metrics import Certificate, Residual
from monai_nodeo.metrics.confidence import wrong_probability
from monai_nodeo.metrics.evidence import Evidence, gather, shared_information
from monai_nodeo.metrics.verdict import Grade, Verdict, judge
from monai_nodeo.registration.before_and_after import images_before_and_after
from monai_nodeo.registration.metrics_table import failed_row, row_of, write_table
from monai_nodeo.report import remake_report, write_index
from monai_nodeo.report.pair import ShownPair, shown

AFFINE = np.diag([1.5, 2.0, 1.0, 1.0])


def read_json(page: Path) -> Any:
    """Content of the page's element "metrics"."""
    (text,) = re.findall(
        r'<script type="application/json" id="metrics">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(text)


def save_volume(folder: Path) -> Path:
    """Folder of a labelled 3D pair."""
    fixed, moving, ddf = deformed_pair((12, 9, 11))
    images = {"fixed": fixed, "moving": moving, "fixed_label": fixed > 0.5, "moving_label": moving > 0.5}
    return save_result(folder, {key: image[0].numpy() for key, image in images.items()}, ddf, AFFINE)


def save_plane(folder: Path) -> Path:
    """Folder of a 2D pair without labels."""
    fixed, moving, ddf = deformed_pair((25, 21))
    return save_result(folder, {"fixed": fixed[0].numpy(), "moving": moving[0].numpy()}, ddf, AFFINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Reports that are read only."""
    makers = {"volume": save_volume, "plane": save_plane}
    return {kind: remake_report(make(tmp_path_factory.mktemp(kind) / "out")) for kind, make in makers.items()}


@pytest.fixture
def plane(tmp_path) -> Path:
    return save_plane(tmp_path / "out")


# evidence


def test_shared_information_is_all_of_oneself_and_little_of_strangers() -> None:
    one, other = (smooth_image((60, 50), seed)[0].numpy() for seed in (0, 1))
    assert shared_information(one, one) == pytest.approx(1)
    assert shared_information(one, 3 * one + 7) == pytest.approx(1)
    assert shared_information(one, other) == pytest.approx(shared_information(other, one))
    assert shared_information(one, other) < 0.3 * shared_information(one, np.roll(one, 1, 0))
    assert shared_information(one, np.ones_like(one)) == 0


@pytest.mark.parametrize("flipped", [(0,), (2,), (0, 1)])
def test_the_directions_of_an_image_that_was_turned_over_are_named(flipped) -> None:
    fixed = smooth_image((14, 16, 12))[0].numpy()
    turned = np.flip(fixed, flipped)
    affine = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # axis 0 points to the back
    evidence = gather({"fixed": fixed, "moving": turned, "warped": turned}, np.zeros((3, *fixed.shape)), affine)
    names = {0: "back-front", 1: "left-right", 2: "bottom-top"}
    assert evidence.turned_along == tuple(names[axis] for axis in flipped)
    assert evidence.shared_turned == pytest.approx(1)


@pytest.mark.parametrize("shape", [(60, 50), (22, 26, 24)])
def test_images_that_lie_apart_tell_about_each_other_aside(shape) -> None:
    fixed = smooth_image(shape, sigma=1.0)[0].numpy()
    still = np.zeros((len(shape), *shape))
    apart = 8  # voxels of 2 mm: 3 times the limit of 5 mm, as near as whole points can be
    images = [{"fixed": fixed, "moving": x, "warped": x} for x in (fixed, np.roll(fixed, apart, 1))]
    found = [gather(pair, still, AFFINE).aside for pair in images]
    assert found[0] == 0
    assert found[1] > 0.6


def test_what_is_masked_out_tells_nothing() -> None:
    fixed = smooth_image((60, 50), sigma=1.0)[0].numpy()
    mask = np.ones(fixed.shape, bool)
    mask[:30] = False
    spoilt = np.where(mask, fixed, smooth_image((60, 50), 3, sigma=1.0)[0].numpy())
    images = {"fixed": fixed, "moving": spoilt, "warped": spoilt}
    with_masks, without = (
        gather(images, np.zeros((2, *fixed.shape)), AFFINE, dict.fromkeys(names, mask)) for names in (images, ())
    )
    assert with_masks.shared_after > 1.5 * without.shared_after
    assert with_masks.aside < 0.1 * without.aside


def test_the_view_of_the_moving_image_ends_where_its_voxels_end() -> None:
    fixed, still = MetaTensor(smooth_image((14, 20))), torch.zeros(2, 14, 20)
    pair = load_pair({"fixed": fixed, "moving": fixed[:, :, :10]})
    still[1, :4] = 3  # reaches three voxels farther

    def warp(image: MetaTensor, mode: str) -> MetaTensor:
        return on_grid_of(fixed, image, ddf=still, mode=mode)

    _, masks = images_before_and_after(pair, None, fixed, warp)
    assert masks["moving"].tolist() == [[y < 10 for y in range(20)] for x in range(14)]
    assert masks["warped"].tolist() == [[y < (7 if x < 4 else 10) for y in range(20)] for x in range(14)]


@pytest.mark.parametrize("shape", [(60, 50), (22, 26, 24)])
def test_an_affine_map_moves_without_bending(shape) -> None:
    image = smooth_image(shape, sigma=1.0)[0].numpy()
    places = np.indices(shape).astype(float)
    moved = np.zeros_like(places)
    moved[1] = 2.5  # voxels of 2 mm
    turned = moved + 0.1 * places[::-1]
    wavy = moved + 2 * np.sin(places / 4)
    images = {"fixed": image, "moving": image, "warped": image}
    found = [gather(images, ddf, AFFINE) for ddf in (moved, turned, wavy)]
    assert found[0].moved == pytest.approx(1)
    assert [f.bent for f in found[:2]] == pytest.approx([0, 0], abs=1e-6)
    assert found[2].bent > 0.01


def test_each_sign_of_a_wrong_registration_makes_it_more_probable() -> None:
    probability = wrong_probability(FINE)
    worse = [{"shared_after": 0.1}, {"aside": 0.3}, {"moved": 3.0}, {"bent": 0.04}]
    assert all(wrong_probability(FINE._replace(**change)) > probability for change in worse)


def test_lengths_are_in_millimetres() -> None:
    image = smooth_image((8, 9, 10))[0].numpy()
    ddf = np.zeros((3, *image.shape))
    ddf[1] = 3
    evidence = gather({"fixed": image, "moving": image, "warped": image}, ddf, AFFINE)
    assert evidence.largest_mm == pytest.approx(6)
    assert evidence.extent_mm == pytest.approx(np.linalg.norm([12, 18, 10]))


# verdict: one thing wrong at a time

FINE = Evidence(0.05, 0.2, 0.01, 0.8, 0.01, 0.05, ("left-right",), False, (100, 100), 10.0, 300.0)

APART = {"shared_after": 0.06, "aside": 0.4, "bent": 0.04}


def proof(folded: int = 0, residual: float = 0.001, volumes: tuple[float, float] = (0.5, 2.0)) -> dict[str, Any]:
    """Of 100,000 cells, of which some fold, as metrics.json has it."""
    way_back = Residual(*[residual] * 6)
    smallest, largest = (volumes[0], (3, 4)), (volumes[1], (5, 6))
    return Certificate(100_000, folded, (folded, 0, 0, 0), smallest, largest, 0.0, 0.0, way_back).to_dict()


FIGURES = {
    "before": {"similarity": 0.8, "dice_mean": 0.5},
    "after": {"similarity": 0.4, "dice_mean": 0.7},
    "certificate": proof(),
    "interrupted_level": None,
    "displacement_mm_mean": 2.0,
}
CONVERGED = {"loss": FALLING.numpy()}


def test_a_good_pair_is_good() -> None:
    verdict = judge(FIGURES, CONVERGED, FINE)
    assert verdict.grade == Grade.GOOD
    assert verdict.headline == "Aligned, without folds, and converged."


@pytest.mark.parametrize("volumes", [(0.004, 2.0), (0.5, 24.4)])
def test_large_changes_of_volume_are_told_at_the_top(volumes) -> None:
    verdict = judge(FIGURES | {"certificate": proof(volumes=volumes)}, CONVERGED, FINE)
    told = f" Volumes change by {volumes[0]} to {volumes[1]:g}."
    assert verdict.headline == "Aligned, without folds, and converged." + told


@pytest.mark.parametrize(
    ("change", "topic", "grade"),
    [
        (APART, "alignment", Grade.BAD),
        ({"shared_after": 0.1, "aside": 0.2, "bent": 0.025}, "alignment", Grade.CHECK),
        ({"aside": 0.5, "shared_turned": 0.1}, "alignment", Grade.BAD),
        ({"shared_turned": 0.1}, "alignment", Grade.GOOD),
        ({"largest_mm": 90.0}, "size", Grade.CHECK),
        ({"grey_values": (100, 4)}, "input", Grade.CHECK),
        ({"aside": 0.5, "shared_turned": 0.1}, "input", Grade.BAD),
    ],
)
def test_evidence_that_is_not_good(change, topic, grade) -> None:
    found = {f.topic: f.grade for f in judge(FIGURES, CONVERGED, FINE._replace(**change)).findings}
    assert found[topic] == grade


@pytest.mark.parametrize(
    ("change", "topic", "grade"),
    [
        ({"start": {"defended": False}}, "start", Grade.CHECK),
        ({"certificate": proof(folded=5)}, "folds", Grade.GOOD),
        ({"certificate": proof(folded=70)}, "folds", Grade.CHECK),
        ({"certificate": proof(folded=3000)}, "folds", Grade.BAD),
        ({"certificate": proof(residual=0.3)}, "folds", Grade.CHECK),
        ({"after": {"similarity": 0.9, "dice_mean": 0.7}}, "similarity", Grade.CHECK),
        ({"after": {"similarity": 0.4, "dice_mean": 0.4}}, "labels", Grade.BAD),
        (
            {"before": {"similarity": 0.8, "dice_mean": 0.1}, "after": {"similarity": 0.4, "dice_mean": 0.2}},
            "labels",
            2,
        ),
    ],
)
def test_figures_that_are_not_good(change, topic, grade) -> None:
    verdict = judge(FIGURES | change, CONVERGED, FINE)
    assert {f.topic: f.grade for f in verdict.findings}[topic] == grade
    assert verdict.grade == grade


@pytest.mark.parametrize(
    ("history", "grade"),
    [
        ({"loss": np.linspace(1, 0, 60)}, Grade.CHECK),
        ({"loss": np.linspace(1, 0, 9)}, Grade.CHECK),
        ({"loss": np.array([1.0, np.nan] * 20)}, Grade.BAD),
        # the last level counts, and it has converged
        ({"loss": np.concatenate([np.linspace(1, 0.5, 60), FALLING]), "level": np.repeat([0, 1], 60)}, Grade.GOOD),
        ({"loss": np.concatenate([FALLING, np.linspace(1, 0.5, 60)]), "level": np.repeat([0, 1], 60)}, Grade.CHECK),
        # a level that has little left to do after the coarse ones
        (
            {"loss": np.concatenate([FALLING, np.linspace(0.5, 0.4, 20)]), "level": np.repeat([0, 1], [60, 20])},
            Grade.GOOD,
        ),
    ],
)
def test_convergence_is_that_of_the_last_level(history, grade) -> None:
    found = {f.topic: f.grade for f in judge(FIGURES, history, FINE).findings}
    assert found["convergence"] == grade


# verdict: real pairs


@pytest.fixture(scope="module")
def head() -> ExamplePair:
    return example_pair(2, 2.0)


@pytest.fixture(scope="module")
def coarse_head() -> ExamplePair:
    return example_pair(3, 6.0)


def registered(
    pair: ExamplePair, moving: np.ndarray, mask: np.ndarray | None = None, preset: str | None = None, **changes: Any
) -> Registration:
    """The example's fixed image with another moving one; the mask is for both."""

    def image(values: np.ndarray) -> MetaTensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
        return MetaTensor(tensor, affine=torch.from_numpy(pair.affine))

    settings = Settings.preset(preset, pair.fixed.ndim, **changes)
    masks = {} if mask is None else dict.fromkeys(("fixed_mask", "moving_mask"), image(mask))
    return register(image(pair.fixed), image(moving), settings, **masks, device="cpu", handlers=())


def shown_pair(registration: Registration) -> ShownPair:
    return shown(registration, {"id": "pair", **registration.figures()})


def verdict_on(registration: Registration) -> Verdict:
    pair = shown_pair(registration)
    return judge(pair.figures, pair.history, gather(pair.images, pair.ddf, pair.affine, pair.masks))


@pytest.mark.parametrize("kind", ["head", "coarse_head"])
def test_a_pair_that_aligns_is_said_to_be_aligned(kind, request) -> None:
    pair = request.getfixturevalue(kind)
    registration = registered(pair, pair.moving)
    verdict = verdict_on(registration)
    assert verdict.headline.startswith("Aligned")
    assert registration.verdict == verdict
    assert verdict.findings[0].grade == Grade.GOOD


@pytest.mark.parametrize("kind", ["head", "coarse_head"])
def test_an_upside_down_moving_image_is_said_to_be_not_aligned(kind, request) -> None:
    pair = request.getfixturevalue(kind)
    axis = pair.fixed.ndim - 1
    verdict = verdict_on(registered(pair, np.flip(pair.moving, axis), initial_transform="none"))
    assert verdict.headline == "Not aligned."
    (reason,) = [f.text for f in verdict.findings if f.topic == "input"]
    assert f"turned over ({('left-right', 'back-front', 'bottom-top')[axis]})" in reason


def mixed(image: np.ndarray) -> np.ndarray:
    """The voxels of an image in any order."""
    return np.random.default_rng(0).permutation(image.ravel()).reshape(image.shape)


@pytest.mark.parametrize("spoil", [lambda image: shift(image, (20, 0), order=0), mixed], ids=["40 mm apart", "noise"])
def test_a_pair_that_cannot_align_is_said_to_be_not_aligned(head, spoil) -> None:
    verdict = verdict_on(registered(head, spoil(head.moving), initial_transform="none"))
    assert verdict.headline.startswith("Not aligned")
    assert not [f for f in verdict.findings if f.topic == "input"]


@pytest.mark.parametrize("preset", [None, "multimodal"])
def test_an_inverted_contrast_aligns(head, preset) -> None:
    verdict = verdict_on(registered(head, head.moving.max() - head.moving, preset=preset))
    assert verdict.headline.startswith("Aligned")


def test_what_is_masked_out_does_not_count_against_the_pair(head) -> None:
    mask = np.ones(head.fixed.shape, bool)
    mask[:, :35] = False
    registration = registered(head, np.where(mask, head.moving, mixed(head.moving)), mask)
    assert verdict_on(registration).headline.startswith("Aligned")
    pair = shown_pair(registration)
    with_masks, without = (gather(pair.images, pair.ddf, pair.affine, masks) for masks in (pair.masks, None))
    assert with_masks.shared_after > 1.5 * without.shared_after


def test_a_perfect_pair_is_said_to_be_identical(head) -> None:
    verdict = verdict_on(registered(head, head.fixed))
    assert verdict.grade == Grade.GOOD
    assert verdict.headline == "Aligned from the start: the two images are identical."


def test_a_pair_that_folds_is_said_to_fold(head) -> None:
    free = {"kernel_passes": 0, "folding_weight": 0.0, "smoothness_weight": 0.0, "unfold": False}
    registration = registered(head, head.moving, **free)
    assert registration.certificate.folded_cells > 0.01 * registration.certificate.cells
    verdict = verdict_on(registration)
    assert verdict.grade == Grade.BAD
    assert "the deformation folds" in verdict.headline


@pytest.mark.parametrize(("level", "told"), [(0, "iteration 5 of level 1 of 3"), (2, "iteration 1 of level 3 of 3")])
def test_an_interrupted_pair_is_said_to_be_interrupted(level, told) -> None:
    counts = [40, 40, 40][:level] + [5 if level == 0 else 1] + [1] * (2 - level)
    history = {"loss": np.ones(sum(counts)), "level": np.repeat([0, 1, 2], counts)}
    verdict = judge(FIGURES | {"interrupted_level": level}, history, FINE)
    (reason,) = [f.text for f in verdict.findings if f.topic == "interruption"]
    assert told in reason
    assert ("finer levels" in reason) == (level < 2)
    assert verdict.headline == "Aligned, with reservations: interruption."
    apart = judge(FIGURES | {"interrupted_level": level}, history, FINE._replace(**APART))
    assert apart.headline == "Not aligned; the optimisation was interrupted."


def test_the_moving_image_is_shown_after_its_affine_start(tmp_path) -> None:
    fixed = smooth_image((16, 18, 14))[0].numpy()
    moving = np.roll(fixed, 3, axis=1)
    start = np.eye(4)
    start[1, 3] = 3 * AFFINE[1, 1]
    images = {"fixed": fixed, "moving": moving, "fixed_label": fixed > 0.5, "moving_label": moving > 0.5}
    folder = save_result(tmp_path, images, torch.zeros(3, *fixed.shape), AFFINE, start=start)
    pair = shown_pair(Registration.load(folder))
    np.testing.assert_allclose(pair.ddf, 0, atol=1e-5)
    for side in ("moving", "warped"):
        for of in (pair.images, pair.labels):
            np.testing.assert_allclose(of[side][:, :-3], of["fixed"][:, :-3], atol=1e-5)


# the page


class _References(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]


@pytest.mark.parametrize("kind", ["volume", "plane"])
def test_the_page_is_small_and_needs_nothing_beside_it(kind, pages) -> None:
    page = pages[kind]
    assert page.stat().st_size < 3e6
    references = _References()
    references.feed(page.read_text(encoding="utf-8"))
    # charts refer to marks within themselves
    assert all(reference.startswith(("data:", "#")) for reference in references.found)
    assert "@import" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["volume", "plane"])
def test_the_figures_in_the_page_are_those_of_the_file(kind, pages) -> None:
    figures = json.loads(pages[kind].with_name("metrics.json").read_text(encoding="utf-8"))
    assert read_json(pages[kind]) == figures


@pytest.mark.parametrize(("kind", "planes", "layers"), [("volume", 3, 12), ("plane", 1, 9)])
def test_every_picture_is_described_and_there_is_one_for_each_plane_and_layer(kind, planes, layers, pages) -> None:
    page = pages[kind].read_text(encoding="utf-8")
    pictures = re.findall(r'<img data-layer="([^"]+)" alt="([^"]+)"', page)
    assert len(pictures) == planes * layers
    assert len(set(pictures)) == planes * layers
    assert ("Dice of the structures" in page) == (kind == "volume")  # which has labels


def test_names_from_outside_are_text_in_the_page(tmp_path) -> None:
    image = smooth_image((25, 21))[0].numpy()
    name = "<img src=x onerror=alert(1)>"  # a file name may hold it
    folder = save_result(tmp_path, {"fixed": image, "moving": image}, torch.zeros(2, 25, 21), AFFINE, id=name)
    page = remake_report(folder).read_text(encoding="utf-8")
    assert name not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize(("kind", "differences"), [("volume", 10), ("plane", 4)])
def test_the_certificate_is_in_the_page(kind, differences, pages) -> None:
    certificate = json.loads(pages[kind].with_name("metrics.json").read_text(encoding="utf-8"))["certificate"]
    (card,) = re.findall(
        r'<section class="card" id="certificate">.*?</section>', pages[kind].read_text("utf-8"), re.DOTALL
    )
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", card)))
    assert certificate["verdict"] in text
    value, place = certificate["smallest_volume"]
    told = [
        f"{value:.3g} at voxel {', '.join(map(str, place))}",
        f"{certificate['folded_cells']} of {certificate['cells']}",
    ]
    told += [f"{certificate[of]['voxels_max']:.2g}" for of in ("inverse", "solver_error")]
    told += [f"{certificate['inverse']['mm_quantile']:.2g}", f"{certificate['file_error_voxels']:.2g} voxels"]
    assert [words for words in told if words not in text] == []
    assert len(certificate["folded_by_difference"]) == differences
    assert f"Folded cells by each difference {'+' * (3 if differences == 10 else 2)} " in text


def test_an_image_that_is_gone_is_named(plane) -> None:
    moving = Path(json.loads((plane / "metrics.json").read_text(encoding="utf-8"))["moving"])
    moving.unlink()
    with pytest.raises(ValueError, match=re.escape(f"pair: without {moving} there are no pictures")):
        remake_report(plane)
    assert not (plane / "report.html").exists()


def test_a_folder_without_a_finished_pair_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} holds no metrics.json")):
        remake_report(tmp_path)


# the page over many pairs, and the command


def done(id: str, dice: float) -> dict[str, Any]:
    figures = {"before": {}, "after": {"dice_mean": dice, "similarity": 0.4}, "seconds_optimisation": 2}
    return row_of({"id": id, **figures})


def test_the_worst_pair_comes_first(tmp_path) -> None:
    grades = {"fine": "good", "poor": "bad", "folded": "check", "fair": "good"}
    for id, grade in grades.items():
        (tmp_path / id).mkdir()
        summary = {"id": id, "grade": grade, "headline": f"It is {grade}.", "thumbnail": "data:,"}
        (tmp_path / id / "report.json").write_text(json.dumps(summary))
    broken = failed_row({"id": "broken"}, "no such <file>")
    write_table(tmp_path, [*[done(id, dice) for id, dice in zip(grades, (0.9, 0.8, 0.7, 0.6), strict=True)], broken])
    page = write_index(tmp_path).read_text(encoding="utf-8")
    order = re.findall(r'<td data-sort="(\w+)">', page)
    assert order == ["broken", "poor", "folded", "fair", "fine"]
    assert "no such &lt;file&gt;" in page
    assert 'href="poor/report.html"' in page
    assert "broken/report.html" not in page


def test_a_folder_without_a_table_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.csv"):
        write_index(tmp_path)


def test_a_table_of_failures_only_is_a_page_without_charts(tmp_path) -> None:
    write_table(tmp_path, [failed_row({"id": "a"}, "gone")])
    assert "Distributions" not in write_index(tmp_path).read_text(encoding="utf-8")


def test_the_command_makes_one_report_or_all(plane) -> None:
    write_table(plane.parent, [done("pair", 0.8)])
    for folder, pages in ((plane, 1), (plane.parent, 2)):
        result = CliRunner().invoke(main, ["report", str(folder)])
        assert result.exit_code == 0, result.output
        assert len(result.output.splitlines()) == pages
    Path(json.loads((plane / "metrics.json").read_text(encoding="utf-8"))["fixed"]).unlink()
    result = CliRunner().invoke(main, ["report", str(plane.parent)])
    assert result.exit_code == 1
    assert "1 reports could not be made" in result.output
    assert (plane.parent / "index.html").exists()


def test_a_folder_name_with_odd_characters_is_linked(tmp_path) -> None:
    (tmp_path / "a b#1").mkdir()
    (tmp_path / "a b#1" / "report.json").write_text(json.dumps({"id": "x", "grade": "good", "headline": "Fine."}))
    write_table(tmp_path, [done("x", 0.8)])
    assert 'href="a%20b%231/report.html"' in write_index(tmp_path).read_text(encoding="utf-8")
