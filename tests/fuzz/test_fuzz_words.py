# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables, data lists, settings, configs and command lines of every kind."""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from judge import IDENTITY, cases, check_folder, check_refusal, run

from monai_nodeo.apps.bundle.trust import check_safe_files
from monai_nodeo.apps.cli import COMMANDS
from monai_nodeo.apps.cli._options import settings_of
from monai_nodeo.data.lists import ERROR, DataListError, RowError, load_datalist
from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import PairError
from monai_nodeo.registration.settings import Settings

CODE = '$__import__("pathlib").Path("pwned").touch()'
words = st.one_of(
    st.sampled_from([CODE, "%x", "@fixed", "a#1", "", " ", ".", "..", "/", "-", "--", "nan", "[a,1]", "é", "\t"]),
    st.sampled_from(
        ["i.nii.gz", "i.nii.gz", "small.nii", "constant.nii.gz", "t.tfm", "points.csv", "folder", "no.nii"]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12),
)
cells = st.one_of(st.floats().map(str), st.floats(-1e3, 1e3).map(str), st.floats(-9, 9).map(str), words)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2**40), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
keys = st.sampled_from(["fixed", "moving", "fixed", "moving", "id", "fixed_label", "moving_label", "moving_mask", "x"])
keys |= st.sampled_from(["fixed_landmarks", "moving_landmarks"])


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory):
    """Files of every kind, where the cases run; nothing they do may add one or take one away."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "folder").mkdir()
    image = np.random.default_rng(0).uniform(0, 100, (9, 10, 11)).astype(np.float32)
    for name, voxels in (("i.nii.gz", image), ("small.nii", image[:3]), ("constant.nii.gz", 0 * image)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / name)
    (folder / "t.tfm").write_text(IDENTITY.format(3) + "Parameters: 0 0 0\nFixedParameters: \n")
    (folder / "points.csv").write_text("x,y,z\n-1,-2,3\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = {path.name for path in folder.iterdir()}
        yield
        assert {path.name for path in folder.iterdir()} == before


@given(st.lists(st.lists(cells, min_size=3, max_size=4), max_size=3), st.sampled_from(["x,y,z", "x,y,z,t", "x,y", "a"]))
@cases(100)
def test_tables_of_points(rows, header):
    """The identity gives the same points, to the digits that are written."""
    text = io.StringIO()
    csv.writer(text).writerows([header.split(","), *rows])
    with TemporaryDirectory() as name:
        folder = Path(name)
        table, output = folder / "points.csv", folder / "moved.csv"
        table.write_text(text.getvalue(), encoding="utf-8")
        result = run("apply", "-i", table, "-t", "t.tfm", "-o", output)
        check_folder(folder, {"points.csv"}, output, result.exit_code == 0)
        event(f"exit status {result.exit_code}")
        if result.exit_code:
            check_refusal(result, table)
            return
        with table.open(newline="", encoding="utf-8") as before, output.open(newline="", encoding="utf-8") as after:
            there, here = ([row for row in csv.reader(file) if row] for file in (before, after))
        for one, other in zip(there[1:], here[1:], strict=True):
            for column, a, b in zip(there[0], one, other, strict=True):
                assert (
                    math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-6) if column in "xyz" else a.strip() == b
                )


@given(st.one_of(values, st.lists(st.dictionaries(keys, words, max_size=4), max_size=3)), st.booleans())
@cases(200)
def test_data_lists(content, as_table):
    """A row is read, or says why not, in one line."""
    with TemporaryDirectory() as name:
        file = Path(name) / ("list.csv" if as_table else "list.json")
        if as_table and isinstance(content, list) and all(isinstance(row, dict) for row in content):
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, sorted({str(key) for row in content for key in row}))
                writer.writeheader()
                writer.writerows({str(key): value for key, value in row.items()} for row in content)
        else:
            file.write_text(json.dumps(content), encoding="utf-8")
        rows = told(lambda: load_datalist(file, Path.cwd()), DataListError, [str(file)])
        assert len({row["id"].casefold() for row in rows or ()}) == len(rows or ())
        for row in rows or ():
            event("bad row" if ERROR in row else "row")
            if ERROR in row:
                assert isinstance(row[ERROR], RowError)
                assert len(str(row[ERROR]).splitlines()) == 1
            else:
                check_pair(row)
    assert not Path("pwned").exists()


def told(work: Callable[[], Any], kind: type[Exception], names: Collection[str]) -> Any:
    """What comes of some work; None if it is refused in one line that has one of the names in it."""
    try:
        result = work()
    except kind as error:
        line = str(error)
        event(f"{kind.__name__}")
    else:
        event("taken")
        return result
    assert len(line.splitlines()) == 1
    assert any(name in line for name in names)
    return None


def check_pair(row: dict[str, Any]) -> None:
    pair = told(lambda: load_pair(row), PairError, row)
    if pair is not None:
        expected = nib.load(row["fixed"]).get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(pair.fixed.image[0].numpy(), expected)


@given(st.sampled_from([*sorted(Settings.preset().to_dict()), "name", "self", CODE]), values)
@cases(150)
def test_settings(name, value):
    """A setting holds, or the error names it."""
    settings = told(lambda: settings_of(3, "fast", ((name, value),), seed=1), ValueError, [repr(name), name])
    if settings is not None:
        again = Settings.from_dict(settings.to_dict())
        assert json.dumps(again.to_dict()) == json.dumps(settings.to_dict())
    assert not Path("pwned").exists()


@given(values)
@cases(100)
def test_safe_configs(config):
    """A config is safe if nothing in it could be more than a value."""
    with TemporaryDirectory() as name:
        file = Path(name) / "c.json"
        file.write_text(json.dumps({"settings": config}), encoding="utf-8")
        texts = list(strings(config))
        if any(text.startswith(("$", "%", "_target_")) for text in texts):
            with pytest.raises(ValueError, match="could run code"):
                check_safe_files([file])
        else:
            check_safe_files([file])


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []:
        yield from strings(inner)


OPTIONS = ["-f", "-m", "-i", "-r", "-t", "-o", "-n", "--init", "--set", "--preset", "--device", "--seed", "--outside"]
OPTIONS += ["--fixed-label", "--moving-mask", "--fixed-landmarks", "--moving-landmarks", "--key", "--shard", "--times"]
STAY = {"serve", "view"}  # until they are told to end
OPTIONS += ["--json", "--quiet", "--inverse", "--t0", "--batch", "--help", "--no-report", "--dataset-dir"]


@given(st.data())
@cases(150)
def test_command_lines(data):
    """Never a traceback, never a file that is not asked for; the moving image has nothing to register."""
    command = data.draw(st.sampled_from([*(set(COMMANDS) - STAY), "nonsense"]))
    line: list[str] = [command]
    if command in ("register", "cohort") and data.draw(st.booleans()):
        line += ["-f", "i.nii.gz", "-m", "constant.nii.gz"]
    if data.draw(st.booleans()):
        line += ["-o", data.draw(st.sampled_from(["o.nii.gz", "o.csv", "o.h5", "out", "a$b"]))]
    if command in ("apply", "evaluate", "invert") and data.draw(st.booleans()):
        line += ["-t", "t.tfm"]
    own = words.filter(lambda word: not word.startswith("/"))  # nothing outside the folder below
    for option in data.draw(st.lists(st.sampled_from(OPTIONS), max_size=3)):
        line += [option, data.draw(own)]
    line += data.draw(st.lists(own, max_size=2))
    files = Path.cwd()
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(files, Path(name) / "one" / "two"))
        result = run(*line)
        event(f"{command}: {result.exit_code}")
        assert result.exit_code in (0, 1, 2, 3)
        assert "Traceback" not in result.output
        if not {"", "."} & set(line):  # results may go to this folder
            assert set(os.listdir()) - set(os.listdir(files)) <= {word.split("/")[0] for word in line}
    assert not Path("pwned").exists()
