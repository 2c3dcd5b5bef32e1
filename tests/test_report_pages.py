# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The pages in a browser of the system, without a network."""

import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finished import save_result
from PIL import Image
from scipy import ndimage
from synthetic import deformed_pair, smooth_ddf, smooth_image

from monai_nodeo.apps.cli import main
from monai_nodeo.registration import Registration
from monai_nodeo.registration.metrics_table import failed_row, row_of, write_table
from monai_nodeo.report import remake_report, scene, write_index, write_view
from monai_nodeo.report.server import RunServer

playwright = pytest.importorskip("playwright.sync_api")

SLOW = "GPU stall due to ReadPixels"  # a processor draws what a graphics card would, and its slowness is no complaint
ROWS = 1000


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., playwright.Page]]:
    """Opens a page of its own; afterwards it must have asked for nothing and complained of nothing."""
    pages: list[playwright.Page] = []
    complaints: list[str] = []

    def _visit(path: Path, width: int = 1200, colours: str = "light") -> playwright.Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours, offline=True)
        pages.append(page)
        page.on("console", lambda m: SLOW in m.text or complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        allowed = path.as_uri()
        page.on("request", lambda r: r.url.startswith(("data:", allowed)) or complaints.append(f"asked for {r.url}"))
        page.goto(allowed)
        return page

    yield _visit
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Page of a labelled 3D pair."""
    fixed, moving, ddf = deformed_pair((24, 18, 22), largest=3)
    images = {"fixed": fixed, "moving": moving, "fixed_label": fixed > 0.5, "moving_label": moving > 0.5}
    folder = tmp_path_factory.mktemp("out")
    arrays = {key: image[0].numpy() for key, image in images.items()}
    return remake_report(save_result(folder, arrays, ddf, np.diag([1.5, 2.0, 1.0, 1.0])))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Page over many pairs, some of them failed."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        id = f"pair{i}"
        if i % 100 == 7:
            rows.append(failed_row({"id": id}, "there is no such file"))
            continue
        after = {"dice_mean": rng.uniform(0.3, 0.9)}
        rows.append(row_of({"id": id, "before": {"dice_mean": 0.4}, "after": after, "folded_cells": i}))
        (folder / id).mkdir()
        summary = {"id": id, "grade": "good" if i % 3 else "check", "headline": "Aligned."}
        (folder / id / "report.json").write_text(json.dumps(summary))
    write_table(folder, rows)
    return write_index(folder)


def pixels(page: playwright.Page, selector: str = ".planes") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"), dtype=int)


def view(page: playwright.Page, name: str) -> None:
    page.locator(f'input[name="view"][value="{name}"]').check(force=True)


def set_opacity(page: playwright.Page, value: int) -> None:
    page.locator("#opacity").fill(str(value))


def test_the_report_shows_its_pictures(visit, pair):
    page = visit(pair)
    loaded = page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert loaded
    for stage in page.locator(".stage").all():
        shot = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("L"))
        assert shot.std() > 10
    for chart in page.locator(".chart svg").all():
        assert chart.bounding_box()["height"] > 80


def test_every_view_draws_something_of_its_own(visit, pair):
    page = visit(pair)
    names = page.locator('input[name="view"]').evaluate_all("(inputs) => inputs.map((input) => input.value)")
    assert len(names) == 8
    shots = []
    for name in names:
        view(page, name)
        assert page.locator(f'[data-legend="{name}"]').is_visible()
        shots.append(pixels(page))
    for i, one in enumerate(shots):
        for other in shots[:i]:
            assert np.abs(one - other).mean() > 0.5


def test_the_slider_goes_from_the_fixed_to_the_warped_image(visit, pair):
    page = visit(pair)
    low, middle, high = [set_opacity(page, value) or pixels(page) for value in (0, 50, 100)]
    assert np.abs(low - high).mean() > 0.5
    np.testing.assert_allclose(middle, (low + high) / 2, atol=3)


def test_flicker_shows_one_image_after_the_other(visit, pair):
    page = visit(pair)
    warped, fixed = [set_opacity(page, value) or pixels(page) for value in (100, 0)]
    page.clock.install(time=0)
    page.clock.pause_at(1)  # else time goes on while pictures are taken
    page.locator("#flicker").click()
    assert page.locator("#flicker").get_attribute("aria-pressed") == "true"
    np.testing.assert_array_equal(pixels(page), warped)
    page.clock.run_for(600)
    np.testing.assert_array_equal(pixels(page), fixed)
    page.clock.run_for(600)
    np.testing.assert_array_equal(pixels(page), warped)
    page.locator("#flicker").click()
    np.testing.assert_array_equal(pixels(page), fixed)


def test_before_and_after_differ_and_the_keys_do_what_the_buttons_do(visit, pair):
    page = visit(pair)
    view(page, "difference")
    after = pixels(page)
    page.locator('input[name="side"][value="before"]').check(force=True)
    before = pixels(page)
    assert np.abs(before - after).mean() > 0.5
    page.keyboard.press("1")
    page.keyboard.press("4")
    np.testing.assert_array_equal(pixels(page), before)
    page.keyboard.press("b")
    np.testing.assert_array_equal(pixels(page), after)
    page.keyboard.press("f")
    assert page.locator("#flicker").get_attribute("aria-pressed") == "true"


def test_the_controls_are_reached_with_the_keyboard_alone(visit, pair):
    page = visit(pair)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert reached == ["view", "side", "flicker", "opacity"]
    shown = page.locator("#opacity-shown").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity-shown").inner_text() != shown


def test_the_certificate_is_to_be_seen(visit, pair):
    page = visit(pair, width=390)
    certificate = json.loads((pair.parent / "metrics.json").read_text(encoding="utf-8"))["certificate"]
    assert page.get_by_text(certificate["verdict"]).first.is_visible()
    folds, *_ = page.locator("#certificate table").nth(1).locator("tbody tr").all()
    assert [int(text) for text in folds.locator("td").all_inner_texts()] == certificate["folded_by_difference"]
    tiles = page.locator("#certificate .tiles div")
    assert tiles.count() == 6
    assert all(tile.is_visible() for tile in tiles.all())


@pytest.mark.parametrize("kind", ["pair", "cohort"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(visit, kind, colours, request):
    page = visit(request.getfixturevalue(kind), width=390, colours=colours)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(part) for part in background.strip("rgb()").split(",")])
    assert (brightness < 80) == (colours == "dark")


def shown_rows(page: playwright.Page) -> list[list[str]]:
    return page.locator("#pairs tbody").evaluate(
        "(body) => [...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((c) => c.innerText))"
    )


def test_the_cohort_sorts_by_any_column_with_the_empty_last(visit, cohort):
    page = visit(cohort)
    assert shown_rows(page)[0][0].endswith("there is no such file")  # worst first
    heads = page.locator("#pairs thead button")
    dice = heads.all_inner_texts().index("Dice")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        heads.nth(dice).click()
        assert page.locator("#pairs th").nth(dice).get_attribute("aria-sort") == direction
        column = [row[dice] for row in shown_rows(page)]
        values = [float(text) for text in column if text]
        assert values == sorted(values, key=lambda value: sign * value)
        assert column[len(values) :] == [""] * (ROWS // 100)
    heads.nth(1).click()
    assert [row[1] for row in shown_rows(page)] == [f"pair{i}" for i in range(ROWS)]


def test_the_cohort_is_filtered_by_words_and_grade(visit, cohort):
    page = visit(cohort)
    page.locator("#find").fill("PAIR12")
    assert len(shown_rows(page)) == 11
    assert page.locator("#shown").inner_text() == f"11 of {ROWS}"
    page.locator("#grade").select_option("check")
    assert {row[1] for row in shown_rows(page)} == {"pair12", "pair120", "pair123", "pair126", "pair129"}
    page.locator("#find").fill("")
    page.locator("#grade").select_option("failed")
    assert len(shown_rows(page)) == ROWS // 100


def test_the_links_lead_to_the_reports(visit, cohort):
    links = visit(cohort).locator("#pairs a").evaluate_all("(links) => links.map((link) => link.href)")
    assert len(links) == ROWS - ROWS // 100
    assert (cohort.parent / "pair1" / "report.html").as_uri() in links


def viewer(folder: Path, shape: tuple[int, ...], affine: np.ndarray, labelled: bool) -> Path:
    """Page of a pair whose flow is nearly the true one, dark at the border as what comes from outside the view."""
    ddf = smooth_ddf(shape, largest=1.5)
    border = np.prod(np.meshgrid(*[np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in shape], indexing="ij"), axis=0)
    moving = smooth_image(shape)[0].numpy() * border
    images = {"fixed": ndimage.map_coordinates(moving, np.indices(shape) + ddf.numpy(), order=1), "moving": moving}
    labels = {f"{name}_label": image > 0.3 for name, image in images.items()} if labelled else {}
    return write_view(save_result(folder, images | labels, ddf, affine))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return viewer(tmp_path_factory.mktemp("volumes"), (24, 18, 22), np.diag([1.5, 2.0, 1.0, 1.0]), labelled=True)


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    coronal = np.array([[1.0, 0, 0, 5], [0, 0, 1, 0], [0, 2, 0, -3], [0, 0, 0, 1]])
    return viewer(tmp_path_factory.mktemp("slices"), (24, 18), coronal, labelled=False)


def drawn(page: playwright.Page, **choices: str) -> np.ndarray:
    """What the viewer shows after some choices."""
    for name, value in choices.items():
        control = page.locator(f"#{name}")
        choose = control.select_option if control.evaluate("(c) => c.tagName") == "SELECT" else control.fill
        choose(value)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_selector("#stage[aria-busy=false]")
    return pixels(page, "#canvas")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one - other).mean()


@pytest.mark.parametrize("kind", [pytest.param("volumes", marks=pytest.mark.long), "slices"])
def test_the_viewer_draws_the_images_the_way_and_what_lies_over_them(visit, kind, request):
    page = visit(request.getfixturevalue(kind), width=600)
    warped, moving = drawn(page), drawn(page, time="0")
    on_the_way = drawn(page, time="2")
    fixed = drawn(page, opacity="0")
    assert fixed.std() > 10
    assert 0.05 < difference(fixed, warped) < 0.5 * difference(fixed, moving)
    assert difference(fixed, warped) < difference(fixed, on_the_way) < difference(fixed, moving)
    half = drawn(page, time="5", opacity="50")
    assert 0 < max(difference(half, fixed), difference(half, warped)) < difference(fixed, warped)
    drawn(page, opacity="0")
    names = page.locator("#overlay option").evaluate_all("(options) => options.map((option) => option.value)")
    assert len(names) == (5 if kind == "volumes" else 3)
    shots = [drawn(page, overlay=name) for name in names]
    np.testing.assert_array_equal(shots[0], fixed)
    for i, one in enumerate(shots):
        assert all(difference(one, other) > 0.2 for other in shots[:i]), names[i]
    assert difference(drawn(page, overlay="grid", time="0"), shots[names.index("grid")]) > 0.2


def test_the_planes_of_the_viewer_are_linked_and_tell_values(visit, volumes):
    page = visit(volumes)
    before = drawn(page)
    told = page.locator("#place").inner_text()
    assert all(word in told for word in ("mm", "fixed", "moving", "Jacobian", "fixed label", "moving label"))
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.25)  # in one plane
    after = drawn(page)
    assert page.locator("#place").inner_text() != told
    changed = np.abs(after - before).max(-1) > 8
    height, width = (n // 2 for n in changed.shape)
    planes = (slice(height), slice(width)), (slice(height), slice(width, None)), (slice(height, None), slice(width))
    assert all(changed[plane].any() for plane in planes)
    red = before[..., 0].astype(int) - before[..., 1] > 60
    for plane in planes:  # both lines of the cross
        assert all(red[plane].sum(axis).max() > 100 for axis in (0, 1))
    told = page.locator("#place").inner_text()
    page.mouse.wheel(0, 100)  # through the plane below the pointer
    assert difference(drawn(page), after) > 0
    assert page.locator("#place").inner_text() != told
    solid = drawn(page, layout="render")
    assert difference(solid, after) > 1
    for name in ("grid", "jacobian"):  # they are everywhere: in 3D they would hide the image
        np.testing.assert_array_equal(drawn(page, overlay=name), solid)


def test_the_foot_of_the_viewer_fits_a_window_of_1100_pixels(visit, volumes):
    page = visit(volumes, 1100)
    drawn(page, overlay="jacobian")
    heights = page.locator("footer").evaluate("(foot) => [foot.scrollHeight, foot.clientHeight]")
    assert heights[0] <= heights[1]


def test_the_viewer_flickers(visit, volumes):
    page = visit(volumes, width=600)
    warped, fixed = drawn(page), drawn(page, opacity="0")
    page.locator("#flicker").click()
    shots = []
    for _ in range(20):
        page.wait_for_timeout(200)
        shots.append(drawn(page))
        if {difference(shot, warped) == 0 for shot in shots} == {True, False}:
            break
    assert any(difference(shot, warped) == 0 for shot in shots)
    assert any(difference(shot, fixed) == 0 for shot in shots)


def test_a_run_is_served_to_those_who_know_the_address(pair, browser):
    folder = pair.parent.parent
    write_table(folder, [row_of(json.loads((pair.parent / "metrics.json").read_text(encoding="utf-8")))])
    with RunServer(folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def get(url: str) -> str:
            with urllib.request.urlopen(url) as answer:
                return answer.read().decode()

        assert f'href="{pair.parent.name}/view.html"' in get(server.url)
        assert 'id="canvas"' in get(f"{server.url}{pair.parent.name}/view.html")
        assert get(f"{server.url}{pair.parent.name}/report.html") == pair.read_text(encoding="utf-8")
        root = f"http://127.0.0.1:{server.server_port}/"
        name = f"{pair.parent.name}/metrics.json"
        for url in (root, f"{server.url}{name}", f"{server.url}../{name}", f"{server.url}%2e%2e/x/view.html"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url)
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("link", name="view").click()
        page.wait_for_selector("#stage[aria-busy=false]")
        assert pixels(page, "#canvas").std() > 10
        page.close()
        server.shutdown()


def test_view_writes_a_page_and_says_what_is_missing(pair, tmp_path):
    target = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["view", str(pair.parent), "--output", str(target)])
    assert (done.exit_code, done.output.strip()) == (0, str(target))
    assert "https://" not in target.read_text(encoding="utf-8").split('id="scene"')[0]
    for arguments in ([str(tmp_path)], [str(tmp_path), "--output", str(target)]):
        failed = CliRunner().invoke(main, ["view", *arguments])
        assert failed.exit_code == 1
        assert str(tmp_path) in failed.output


def test_a_scene_codes_volumes_and_thins_what_is_too_large(pair, monkeypatch):
    still = torch.zeros(3, 6, 5, 4)
    assert set(scene._volume_changes(still).ravel()) == {128}  # 1, in the middle
    folded = still.clone()
    folded[0] = -2.0 * torch.arange(6.0)[:, None, None]
    assert set(scene._volume_changes(folded).ravel()) == {0}
    monkeypatch.setattr(scene, "_MOST_VOXELS", 2000)
    registration = Registration.load(pair.parent)
    found = scene.scene_of(registration)
    assert (found["step"], found["shape"]) == (2, (12, 9, 11))
    np.testing.assert_allclose(np.linalg.inv(found["to_voxel"]), np.diag([3.0, 4.0, 2.0, 1.0]))
