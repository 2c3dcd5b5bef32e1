# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.data import DataLoader

from monai_nodeo.data import DataListError, FailedRow, PairDataset, RowError, load_datalist, single_pair
from monai_nodeo.data.lists import ERROR

ROW = {"fixed": "f.nii.gz", "moving": "m.nii.gz"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def _write(entries: Any) -> Path:
        path = tmp_path / "pairs.json"
        path.write_text(json.dumps(entries))
        return path

    return _write


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_relative_paths_start_at_the_list_and_absolute_ones_stay(write, tmp_path):
    path = write([{"fixed": "a/f.nii.gz", "moving": "/data/m.nii.gz", "fixed_label": None}])
    (row,) = load_datalist(path)
    assert row == {"fixed": str(tmp_path / "a/f.nii.gz"), "moving": "/data/m.nii.gz", "id": "m_to_f"}


def test_relative_paths_start_at_dataset_dir_when_given(write, tmp_path):
    (tmp_path / "images").mkdir()
    entry = ROW | {"fixed_label": "fl.nii.gz", "moving_label": "ml.nii.gz"}
    (row,) = load_datalist(write([entry]), dataset_dir=tmp_path / "images")
    assert {key: row[key] for key in entry} == {key: str(tmp_path / "images" / name) for key, name in entry.items()}


def test_a_single_pair_starts_at_the_working_directory():
    (row,) = single_pair(Path("F.nii.gz"), "M.nii.gz", fixed_label="FL.nii.gz", moving_label=Path("ML.nii.gz"))
    assert row == {
        "fixed": "F.nii.gz",
        "moving": "M.nii.gz",
        "fixed_label": "FL.nii.gz",
        "moving_label": "ML.nii.gz",
        "id": "M_to_F",
    }
    assert ids(single_pair("F.nii.gz", "M.nii.gz", id="mine")) == ["mine"]


@pytest.mark.parametrize(
    ("fixed", "moving", "expected"),
    [
        ("a.nii", "b.nii.gz", "b_to_a"),
        ("a.nii.gz", "a.nii.gz", "a_to_a"),
        ("v1.2.nii.gz", "v1.3.nii.gz", "v1.3_to_v1.2"),
        ("0001/norm.nii.gz", "0002/norm.nii.gz", "0002_to_0001"),
        ("s1/anat/t1.nii.gz", "s2/anat/t1.nii.gz", "s2_anat_to_s1_anat"),
        ("s1/t1.nii.gz", "s1/t2.nii.gz", "t2_to_t1"),
        ("my head (1).nii.gz", "..odd.nii.gz", "odd_to_my_head_1_"),
        ("a.mgz", "b.mgz", "b_to_a"),
    ],
)
def test_a_name_is_as_short_as_it_can_be(fixed, moving, expected):
    assert ids(single_pair(fixed, moving)) == [expected]


def test_names_tell_every_image_of_the_list_apart(write):
    subjects = [("atlas.nii.gz", f"{n}/{kind}.nii.gz") for n in ("01", "02") for kind in ("t1", "t2")]
    rows = load_datalist(write([{"fixed": fixed, "moving": moving} for fixed, moving in subjects]))
    assert ids(rows) == ["01_t1_to_atlas", "01_t2_to_atlas", "02_t1_to_atlas", "02_t2_to_atlas"]


def test_a_pair_listed_twice_gets_a_number(write):
    rows = load_datalist(write([ROW, ROW, ROW | {"id": "M_to_f_2"}, ROW, ROW | {"id": 17}]))
    assert ids(rows) == ["m_to_f", "m_to_f_3", "M_to_f_2", "m_to_f_4", "17"]


def test_names_are_safe_path_components_of_bounded_length(write):
    rows = load_datalist(write([{"fixed": f"{'ü' * 90}/{'x' * 200}.nii.gz", "moving": "a\n/?:*.nii.gz"}]))
    (name,) = ids(rows)
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\?:*\n")
    assert name not in ("", ".", "..")


def test_real_list_is_named_by_its_folders(oasis):
    rows = load_datalist(oasis / "pairs2d.json")
    assert len(rows) == len(set(ids(rows))) == 20
    assert rows[0]["id"] == "0060_to_0031"
    assert all(Path(row[key]).is_file() for row in rows for key in row if key != "id")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{oops", "not JSON"),
        (b"\xff\xfe\x00bad", "no text in UTF-8"),
        (b'{"training": []}', "a JSON object with no list of pairs; name one"),
        (b"null", "a JSON null"),
        (b"3.5", "a JSON number"),
        (b"[]", "the list is empty"),
    ],
)
def test_a_bad_list_is_refused_by_name(tmp_path, text, problem):
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(DataListError, match=f"bad.json: .*{problem}"):
        load_datalist(path)


def test_a_missing_list_or_folder_is_named(write, tmp_path):
    with pytest.raises(DataListError, match=r"nowhere\.json: .*cannot be read \(No such file"):
        load_datalist(tmp_path / "nowhere.json")
    with pytest.raises(DataListError, match="cannot be read"):
        load_datalist(tmp_path)
    with pytest.raises(DataListError, match="dataset_dir .*nofolder: there is no such folder"):
        load_datalist(write([ROW]), dataset_dir=tmp_path / "nofolder")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (["f.nii.gz", "m.nii.gz"], "the row is a JSON list"),
        ("f.nii.gz", "the row is a JSON string"),
        ({"moving": "m.nii.gz"}, 'there is no "fixed"'),
        ({"fixed": "f.nii.gz", "moving": None}, 'there is no "moving"'),
        (ROW | {"fixed": 3}, '"fixed" is 3; expected the path'),
        (ROW | {"moving": " "}, '"moving" is " "; expected the path'),
        (ROW | {"moving_lable": "x"}, 'unknown key "moving_lable"; did you mean "moving_label"'),
        (ROW | {"error": "x"}, 'unknown key "error"'),
        (ROW | {"id": "../up"}, '"id" is "../up"; it names the output folder'),
        (ROW | {"id": ""}, '"id" is ""'),
        (ROW | {"id": "."}, '"id" is "."'),
        (ROW | {"id": "a "}, '"id" is "a "'),
        (ROW | {"id": "x" * 121}, "up to 120"),
        (ROW | {"id": True}, '"id" is true'),
        (ROW | {"id": "GOOD"}, "the id 'GOOD' is taken by row 1"),
    ],
)
def test_a_bad_row_keeps_its_place_and_its_reason(write, entry, problem):
    rows = load_datalist(write([ROW | {"id": "good"}, entry, ROW]))
    assert ids(rows) == ["good", "row_2", "m_to_f"]
    assert isinstance(rows[1][ERROR], RowError)
    assert problem in str(rows[1][ERROR])
    assert ERROR not in rows[0] | rows[2]


def keep(row: dict[str, Any]) -> dict[str, Any]:
    if row["fixed"] == "bad":
        raise OSError("disk on fire")
    return row


def test_bad_rows_are_reported_and_the_others_go_on(caplog):
    bad_row = {"id": "b", ERROR: RowError("no paths")}
    rows: list[dict[str, Any]] = [{"fixed": "bad"}, {"fixed": "a", "id": "a"}, bad_row, {"fixed": "c"}]
    dataset = PairDataset(rows, keep)
    with caplog.at_level(logging.ERROR):
        items = iter(dataset)
        assert next(items)["id"] == "a"
        assert [failure.row for failure in dataset.failures] == [1]  # at once, not at the end
        assert [item["id"] for item in items] == ["row_4"]
    expected = [FailedRow(1, "row_1", "OSError: disk on fire"), FailedRow(3, "b", "no paths")]
    assert dataset.failures == expected
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert caplog.messages == ["row 1 (row_1) failed: OSError: disk on fire", "row 3 (b) failed: no paths"]


def test_failures_start_anew_in_the_same_list():
    dataset = PairDataset([{"fixed": "bad"}], keep)
    failures = dataset.failures
    for _ in range(2):
        assert list(dataset) == []
        assert [failure.row for failure in failures] == [1]


def test_rows_are_left_as_they_were():
    rows: list[dict[str, Any]] = [{"fixed": "a"}]
    list(PairDataset(rows, lambda row: row.update(fixed="b") or row))
    assert rows == [{"fixed": "a"}]


def test_worker_processes_are_refused():
    loader = DataLoader(PairDataset([{"fixed": "a"}], keep), num_workers=1)
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(loader))
