# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The pages in a browser of the system, without a network."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from finished import save_result
from PIL import Image
from synthetic import deformed_pair

from monai_nodeo.registration.table import failed_row, row_of, write_table
from monai_nodeo.report import remake_report, write_index

playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROWS = 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., playwright.Page]]:
    """Opens a page of its own; afterwards it must have asked for nothing and complained of nothing."""
    pages: list[playwright.Page] = []
    complaints: list[str] = []

    def _visit(path: Path, width: int = 1200, colours: str = "light") -> playwright.Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours, offline=True)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
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
