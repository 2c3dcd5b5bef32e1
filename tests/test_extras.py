# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is not installed, or is not there on other systems, as a fresh environment meets it."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from grids import VOLUME, make_image

from monai_nodeo.files import ImageGrid, write_image

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("contourpy", "dask", "distributed", "fire", "jinja2", "jsonschema", "matplotlib", "nilearn", "pydicom")
EXTRAS += ("tensorboard", "zarr")
UNIX = ("fcntl", "grp", "pwd", "resource", "termios")

SCRIPT = f"""
import contextlib, io, json, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules |= dict.fromkeys({EXTRAS + UNIX})
import monai_nodeo.apps.cohort.ledger, monai_nodeo.registration.machine  # what takes locks and measures memory
for name in {UNIX}:
    del sys.modules[name]
from click.testing import CliRunner
from monai_nodeo.apps.cli import main
found = []
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, words)
    found.append([result.exit_code, result.output])
try:
    import monai_nodeo.apps.bundle.workflow
except ImportError as error:
    found.append([1, str(error)])
said = io.StringIO()
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
    try:
        from monai_nodeo.apps import demo
        demo.main(["--quick"])
    except SystemExit as error:
        found.append([error.code, said.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit status and output of commands where no extra is installed."""
    folder = tmp_path_factory.mktemp("core")
    grid = ImageGrid(VOLUME.affine, (16, 18, 14))
    for seed, name in enumerate(("fixed", "moving")):
        write_image(folder / f"{name}.nii.gz", make_image(grid, seed), grid)
    (folder / "pairs.json").write_text('[{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"}]', encoding="utf-8")
    few = ["--init", "none", "--device", "cpu"]
    few += [w for s in ("iterations=[2,2]", "shrink_factors=[2,1]", "dense_iterations=0") for w in ("--set", s)]
    pair = ["register", "-f", "fixed.nii.gz", "-m", "moving.nii.gz"]
    calls = {
        "register": [*pair, "-o", "out", *few],
        "cohort": ["cohort", "pairs.json", "-o", "pairs", "--workers", "2"],
        "report": ["report", "out"],
        "flow": ["flow", "out", "--animate", "film.gif"],
        "view": ["view", "out"],
        "tensorboard": [*pair, "-o", "logged", "--no-report", "--quiet", "--tensorboard", "logs"],
        "dicom": ["convert", "out/transform.h5", "transform.dcm"],
        "zarr": ["apply", "-i", "moving.nii.gz", "-r", "fixed.nii.gz", "-t", "out", "-o", "warped.ome.zarr"],
    }
    words = [sys.executable, "-c", SCRIPT, json.dumps([*calls.values()])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip([*calls, "workflow", "demo"], json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_core_registers_a_pair(found):
    status, said = found["register"]
    assert status == 0, said
    assert "no report: matplotlib is not installed" in said


@pytest.mark.parametrize(
    ("what", "extra"),
    [
        ("cohort", "cohort"),
        ("demo", "demo"),
        ("dicom", "dicom"),
        ("flow", "report"),
        ("report", "report"),
        ("tensorboard", "tensorboard"),
        ("view", "view"),
        ("workflow", "bundle"),
        ("zarr", "zarr"),
    ],
)
def test_missing_extra_is_named(what, extra, found):
    status, said = found[what]
    assert status == 1
    assert f"pip install 'monai-nodeo[{extra}]'" in said
    assert len(said.strip().splitlines()) == 1 or what == "cohort"


def test_every_extra_that_is_named_is_one_of_setup():
    config = configparser.ConfigParser(comment_prefixes="#")
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(config["options.extras_require"])
    for folder, endings in (("monai_nodeo", ".py"), ("docs", ".md"), ("release", ".sh"), ("bundle", ".md")):
        for file in (ROOT / folder).rglob(f"*{endings}"):
            found = re.findall(r"""\bextra\("(\w+)"|monai-nodeo\[([\w,]+)\]""", file.read_text(encoding="utf-8"))
            assert {name for names in found for part in names if part for name in part.split(",")} <= extras, file
