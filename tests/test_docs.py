# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands and the Python of the documentation are run as they stand."""

import doctest
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cohorts import QUICK, as_it_was, make_rows, table
from dicom import write_series
from grids import VOLUME, make_image
from scipy.spatial.transform import Rotation

from monai_nodeo import register
from monai_nodeo.apps.cli import main
from monai_nodeo.data import as_image
from monai_nodeo.data.examples import example_pair
from monai_nodeo.files import ImageGrid, write_affine, write_image, write_labels
from monai_nodeo.losses import LocalNCCLoss
from monai_nodeo.registration import Settings, presets

ROOT = Path(__file__).resolve().parents[1]
# A command that starts at the root; those of the bundle's page are in test_bundle.py and test_one_result.py.
BUNDLE = "python -m monai.bundle run --config_file bundle/configs/inference.json"
# Pages with a set-up of their own below; that of the server is in test_serve.py.
APART = {f"docs/{name}.md" for name in ("first_registration", "cohort", "atlases", "bids", "templates", "serve")}
# Pages that hold commands of other tools beside ours.
BESIDE = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/coming_from/*.md"))]
LONG = ["docs/channels.md", "docs/sequences.md"]  # they take many seconds
SMALL = ImageGrid(VOLUME.affine, (16, 18, 14))
# Modules whose docstrings hold examples; that of `apps.physio` is in test_physio.py.
EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("monai_nodeo/**/*.py")
    if ">>> " in path.read_text(encoding="utf-8") and path.stem != "physio"
)
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(
        [
            ROOT / "README.md",
            *ROOT.glob("docs/*.md"),
            *map(ROOT.joinpath, BESIDE),
            ROOT / "bundle" / "docs" / "README.md",
        ]
    )
}


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    return [block for block in found if page not in BESIDE or "monai" in block]


def commands(page: str, program: str = "monai-nodeo") -> list[list[str]]:
    """The arguments of a program in a page's shell blocks; other tools stand there for comparison."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    ours = [line.removeprefix(program) for line in lines if line.startswith(f"{program} ")]
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return [shlex.split(line.replace("cuda:0", device), comments=True) for line in ours]


@pytest.fixture(autouse=True)
def _quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with a bundle and presets of at most 10 iterations a level, which begin at the headers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "_folder", tmp_path.joinpath)
    for name in ("bundle", "configs"):
        for file in Path(shutil.copytree(ROOT / name, name)).rglob("*.json"):
            text = file.read_text(encoding="utf-8").replace('"initial_transform": "auto"', '"initial_transform": null')
            file.write_text(re.sub(r'(?<=iterations": \[).*?(?=\])', lambda m: re.sub(r"\d\d+", "10", m[0]), text))


def run(words: list[str]) -> None:
    with as_it_was():
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"{words}: {result.output}"


def write_files(folder: Path) -> None:
    """Small images, labels, points, series, an atlas and a list, under the names that the documentation has."""
    for seed, name in enumerate(("fixed", "moving", "t2", "fixed_t2", "moving_t2")):
        write_image(folder / f"{name}.nii.gz", make_image(SMALL, seed), SMALL)
        write_labels(folder / f"{name}_labels.nii.gz", np.digitize(make_image(SMALL, seed), [500]), SMALL)
    middle = SMALL.affine @ [8, 9, 7, 1] * [-1, -1, 1, 1]
    for side in ("fixed", "moving"):
        (folder / f"{side}_points.csv").write_text("x,y,z\n" + ",".join(map(str, middle[:3])))
    (folder / "fixed_points.txt").write_text("point\n1\n" + " ".join(map(str, middle[:3])))
    ras = (middle[:3] * [-1, -1, 1])[None].astype(np.float32)
    nib.streamlines.save(nib.streamlines.Tractogram([ras], affine_to_rasmm=np.eye(4)), folder / "moving_tracts.tck")
    surface = nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(ras, "NIFTI_INTENT_POINTSET")])
    surface.to_filename(folder / "moving_surface.gii")
    write_affine(folder / "t2_to_t1_0GenericAffine.mat", np.eye(4))
    frames = np.stack([np.roll(make_image(SMALL, 0), shift, 0) for shift in (0, 1, 0)], -1)
    for name in ("cine.nii.gz", "bold.nii.gz"):
        nib.Nifti1Image(frames.astype(np.float32), SMALL.affine).to_filename(folder / name)
    shutil.copy(folder / "fixed_labels.nii.gz", folder / "cine_label.nii.gz")
    shutil.copy(folder / "moving_labels.nii.gz", folder / "labels.nii.gz")
    shutil.copy(folder / "fixed_points.csv", folder / "points.csv")
    (folder / "atlases" / "anna").mkdir(parents=True)
    shutil.copy(folder / "moving.nii.gz", folder / "atlases" / "anna" / "image.nii.gz")
    shutil.copy(folder / "moving_labels.nii.gz", folder / "atlases" / "anna" / "label.nii.gz")
    (folder / "pairs.json").write_text(json.dumps([{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"}]))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # MONAI's BendingEnergyLoss
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page in LONG else ())
        for page in TEXTS
        if page not in APART and (commands(page) or blocks(page, "python"))
    ],
)
def test_page(page, tmp_path):
    """Its commands, then all its Python as one script, beside some small files."""
    write_files(tmp_path)
    if "_series" in TEXTS[page]:
        for number, side in enumerate(("fixed", "moving")):
            write_series(tmp_path / f"{side}_series", make_image(SMALL, number), SMALL.affine, number + 1)

    for words in commands(page):
        run(words)
    for words in commands(page, BUNDLE):
        subprocess.run(
            [sys.executable, *BUNDLE.split()[1:], *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
        )
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")))
    runpy.run_path("page.py")

    outputs = {words[words.index("-o") + 1] for words in commands(page) if "-o" in words}
    assert [name for name in outputs if not (tmp_path / name).exists()] == []


class _Shown(doctest.OutputChecker):
    """What an example shows has to come out; it need not show all."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_the_reference(module, tmp_path):
    """They run as they stand, beside some small files and with what they leave to the reader."""
    write_files(tmp_path)
    image = as_image("fixed.nii.gz")
    given = {
        "torch": torch,
        "np": np,
        "register": register,
        "Settings": Settings,
        "points": torch.zeros(1, 3),
        "image": image,
        "fixed": image,
        "moving": as_image("moving.nii.gz"),
        "frames": as_image("fixed.nii.gz").repeat(3, 1, 1, 1),
        "times": [0.0, 0.25, 0.5],
        "MyLoss": lambda: LocalNCCLoss(3, 5),
    }
    runner = doctest.DocTestRunner(_Shown())
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), extraglobs=given)
    assert sum(len(test.examples) for test in found)
    for test in found:
        runner.run(test)
    assert not runner.failures


def test_no_text_holds_both_sides_of_a_conflict():
    texts = TEXTS | {"CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}
    assert not [page for page, text in texts.items() if re.search(r"^(<<<<<<<|>>>>>>>) ", text, flags=re.MULTILINE)]


def test_every_page_is_in_the_navigation_of_the_site():
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert sorted(set(pages) - set(named)) == sorted(page for page in pages if re.match("decisions/(?!README)", page))


@pytest.mark.parametrize("page", BESIDE)
def test_tables_beside_other_tools_name_what_is_there(page):
    """Commands, options, presets and settings."""
    spoken = [
        name for name in main.list_commands(click.Context(main)) if re.search(rf"`{name} -|nodeo {name}", TEXTS[page])
    ]
    options = {
        option
        for name in {"register", *spoken}
        for parameter in main.get_command(click.Context(main), name).params
        for option in parameter.opts
    }
    right = " ".join(row.split("|")[-2] for row in TEXTS[page].splitlines() if row.startswith("|"))
    assert set(re.findall(r"`(--[\w-]+)", right)) <= options
    assert set(re.findall(r"--preset (\w+)", TEXTS[page])) <= {path.stem for path in ROOT.glob("configs/*.json")}
    assert set(re.findall(r"--set (\w+)=", TEXTS[page])) <= {field.name for field in fields(Settings)}


@pytest.mark.long
def test_page_for_newcomers(tmp_path):
    """Two series of the example's heads, of which the second lies turned and shifted in its scanner."""
    pair = example_pair(3, spacing=5.0)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (8, -6, 10), degrees=True).as_matrix()
    turned[:3, 3] = 25, -15, 30
    for name, image, label, affine in (
        ("anna", pair.fixed, pair.fixed_label, pair.affine),
        ("berta", pair.moving, pair.moving_label, turned @ pair.affine),
    ):
        write_series(tmp_path / "scans" / name, (1000 * image).astype(np.int16), affine)
        write_labels(tmp_path / f"{name}_labels.nii.gz", label, ImageGrid(affine, label.shape))

    for words in commands("docs/first_registration.md"):
        run([*words, *(("--init", "auto") if words[0] == "register" else ())])

    labels = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["labels"]

    assert labels["before"]["dice_mean"] < 0.4
    assert labels["after"]["dice_mean"] > 0.6
    on_anna = nib.Nifti1Image.from_filename(tmp_path / "labels_on_anna.nii.gz")
    assert on_anna.get_data_dtype() == np.uint8
    assert on_anna.shape == pair.fixed.shape
    np.testing.assert_allclose(on_anna.affine, pair.affine, atol=1e-3)
    back = nib.Nifti1Image.from_filename(tmp_path / "anna_on_berta.nii.gz")
    berta = np.corrcoef(back.get_fdata().ravel(), pair.moving.ravel())[0, 1]
    assert berta > 0.9


def test_page_of_cohorts(tmp_path):
    rows = make_rows(tmp_path, 2)
    (tmp_path / "pairs.csv").write_text("fixed,moving\n" + "\n".join(f"{r['fixed']},{r['moving']}" for r in rows))
    lists = {"registration_val": [{side: row[side] for side in ("fixed", "moving")} for row in rows], "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    shutil.copy(rows[0]["fixed"], tmp_path / "atlas.nii.gz")
    subject = tmp_path / "sub-01" / "anat"
    subject.mkdir(parents=True)
    shutil.copy(rows[1]["moving"], subject / "sub-01_T1w.nii.gz")
    for words in commands("docs/cohort.md"):
        run([*words, *QUICK])
    folders = [path.parent for path in tmp_path.glob("*/metrics.csv")]
    found = {folder.name: [row["status"] for row in table(folder).values()] for folder in folders}
    assert found == {"results": ["done"] * 2, "learn2reg": ["done"] * 2, "to_atlas": ["done"]}


def test_page_of_atlases(tmp_path):
    """The example's slice, labelled by others that were made of it."""
    for number in range(4):
        pair = example_pair(2, spacing=5.0, seed=number)
        grid = ImageGrid(pair.affine, (*pair.moving.shape, 1))
        for folder, names in (("atlases", ("image", "label")), ("heads", ("t1", "seg"))):
            place = tmp_path / folder / f"head{number}" if number else tmp_path
            place.mkdir(parents=True, exist_ok=True)
            write_image(place / f"{names[0]}.nii.gz", pair.moving, grid)
            write_labels(place / f"{names[1]}.nii.gz", pair.moving_label, grid)
    listed = [{side: f"atlases/head{n}/{side}.nii.gz" for side in ("image", "label")} for n in range(1, 4)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")

    for words in commands("docs/atlases.md"):
        run([*words, "--label", "label.nii.gz"])
    exec("\n".join(blocks("docs/atlases.md", "python")), {})

    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/metrics.json")}
    assert {name: sum(atlas["chosen"] for atlas in figures["atlases"]) for name, figures in found.items()} == {
        "labelled": 3,
        "labelled_by_heads": 3,
        "labelled_by_two": 2,
    }
    assert min(figures["dice_mean"] for figures in found.values()) > 0.6


def test_page_of_bids(tmp_path):
    """Two subjects, and an atlas as a folder and as files."""
    for row, subject in zip(make_rows(tmp_path, 2), ("01", "02"), strict=True):
        image = tmp_path / "raw" / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        shutil.copy(row["moving"], image)
    (tmp_path / "raw" / "dataset_description.json").write_text("{}")
    (tmp_path / "atlas").mkdir()
    for names in (("atlas/image", "atlas/label"), ("template_T1w", "template_dseg")):
        shutil.copy("fixed0.nii.gz", f"{names[0]}.nii.gz")
        values = nib.Nifti1Image.from_filename("fixed0.nii.gz")
        labels = np.digitize(values.get_fdata(), [500]).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, values.affine), f"{names[1]}.nii.gz")
    for words in commands("docs/bids.md"):
        run([*words, *(QUICK if words[0] == "bids" else ())])

    done = [path.parent.name for path in tmp_path.glob("derivatives/nodeo/registrations/*/*/result.json")]
    assert sorted(done) == ["sub-01_T1w"] * 2 + ["sub-02_T1w"] * 2
    on_atlas, ours = (
        nib.Nifti1Image.from_filename(name).get_fdata()
        for name in (
            "sub-01_on_atlas.nii.gz",
            "derivatives/nodeo/sub-01/anat/sub-01_space-atlas_desc-warped_T1w.nii.gz",
        )
    )
    np.testing.assert_allclose(on_atlas, ours, atol=0.5)


def test_page_of_templates(tmp_path, monkeypatch):
    """The example's slices; the shell's pattern is read here."""
    (tmp_path / "scans").mkdir()
    for number, name in enumerate("abc"):
        pair = example_pair(2, spacing=6.0, seed=number)
        grid = ImageGrid(pair.affine, (*pair.moving.shape, 1))
        write_image(tmp_path / f"scans/{name}.nii.gz", pair.moving, grid)
        write_labels(tmp_path / f"scans/{name}_seg.nii.gz", pair.moving_label, grid)
    listed = [{"image": f"scans/{name}.nii.gz", "label": f"scans/{name}_seg.nii.gz"} for name in "abc"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")

    scans = [f"scans/{name}.nii.gz" for name in "abc"]
    for words in commands("docs/templates.md"):
        run([part for word in words for part in (scans if word == "scans/*.nii.gz" else [word])] + [*QUICK])
    exec("\n".join(blocks("docs/templates.md", "python")), {})

    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/metrics.json")}
    assert {name: (len(f["images"]), len(f["rounds"])) for name, f in found.items()} == {
        "group": (3, 3),
        "labelled_group": (3, 3),
        "refined_group": (3, 1),
        "pair": (2, 2),
    }
