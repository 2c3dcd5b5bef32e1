# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from monai_nodeo.data.lists import DataListError, RowError, load_datalist, pairs_to_one

PAIR = {"fixed": "f.nii.gz", "moving": "m.nii.gz"}
OTHER = {"fixed": "f.nii.gz", "moving": "n.nii.gz", "id": "other"}
# As Learn2Reg writes it: paths with ./, labels and masks beside the images and not beside the pairs.
LEARN2REG = {
    "name": "ThoraxCBCT",
    "tensorImageShape": {"0": [390, 280, 300]},
    "training": [
        {"image": "./imagesTr/a_0000.nii.gz", "label": "./labelsTr/a_0000.nii.gz", "mask": "./masksTr/a_0000.nii.gz"},
        {"image": "./imagesTr/b_0000.nii.gz", "label": "./labelsTr/b_0000.nii.gz", "mask": "./masksTr/b_0000.nii.gz"},
        {"image": "./imagesTr/c_0000.nii.gz"},
    ],
    "test": ["./imagesTs/d_0000.nii.gz"],
    "registration_val": [
        {"fixed": "./imagesTr/a_0000.nii.gz", "moving": "./imagesTr/b_0000.nii.gz"},
        {"fixed": "./imagesTr/a_0000.nii.gz", "moving": "./imagesTr/c_0000.nii.gz"},
    ],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def relative(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, str]]:
    return [{k: v.replace(f"{folder}/", "") for k, v in row.items() if k != "id"} for row in rows]


def test_table_json_and_keyed_json_say_the_same(tmp_path):
    csv = write(tmp_path / "pairs.CSV", "moving, fixed ,id\nm.nii.gz,f.nii.gz,\n n.nii.gz,f.nii.gz,other\n")
    plain = write(tmp_path / "pairs.json", [PAIR, OTHER])
    keyed = write(tmp_path / "keyed.json", {"fold": 1, "training": [{"image": "x"}], "validation": [PAIR, OTHER]})
    expected = load_datalist(plain)
    assert [row["id"] for row in expected] == ["m_to_f", "other"]
    assert load_datalist(csv) == load_datalist(keyed) == load_datalist(keyed, key="validation") == expected


def test_learn2reg_labels_are_found_with_the_images(tmp_path):
    first, second = relative(load_datalist(write(tmp_path / "dataset.json", LEARN2REG)), tmp_path)
    assert first == {
        **{side: f"imagesTr/{name}_0000.nii.gz" for side, name in (("fixed", "a"), ("moving", "b"))},
        **{f"{side}_label": f"labelsTr/{name}_0000.nii.gz" for side, name in (("fixed", "a"), ("moving", "b"))},
        **{f"{side}_mask": f"masksTr/{name}_0000.nii.gz" for side, name in (("fixed", "a"), ("moving", "b"))},
    }
    # one label alone is of no use
    assert set(second) == {"fixed", "moving", "fixed_mask"}


def test_bad_rows_of_a_table_are_kept(tmp_path):
    rows = load_datalist(
        write(tmp_path / "pairs.csv", "fixed,moving,age\nf.nii.gz,m.nii.gz,\nf.nii.gz,,\na,b,40\na,b,,c\n")
    )
    assert [isinstance(row.get("error"), RowError) for row in rows] == [False, True, True, True]
    assert "moving" in str(rows[1]["error"])
    assert '"age"' in str(rows[2]["error"])


@pytest.mark.parametrize(
    ("name", "content", "key", "problem"),
    [
        ("a.json", {"validation": [PAIR]}, "test", "no list 'test'; there are validation"),
        ("a.json", {"one": [PAIR], "two": [PAIR]}, None, "several lists of pairs, one, two; name one"),
        ("a.json", {"training": [{"image": "x"}]}, None, "no list of pairs"),
        ("a.json", {"validation": []}, "validation", "the list is empty"),
        ("a.json", [PAIR], "validation", "leave the key 'validation' out"),
        ("a.csv", "fixed,moving\n", None, "the list is empty"),
        ("a.csv", 'fixed,moving\n"a,b\n', None, "not CSV"),
    ],
)
def test_a_list_of_no_use_is_refused_by_name(tmp_path, name, content, key, problem):
    with pytest.raises(DataListError, match=f"{name}: .*{problem}"):
        load_datalist(write(tmp_path / name, content), key=key)


def test_pattern_finds_all_but_the_atlas(tmp_path):
    for name in ("sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w", "sub-02/anat/sub-02_T2w", "sub-09/anat/atlas_T1w"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"{name}.nii.gz", "")
    atlas = tmp_path / "sub-09/anat/atlas_T1w.nii.gz"
    rows = pairs_to_one(atlas, str(tmp_path / "sub-*/anat/*_T1w.nii.gz"))
    assert [row["id"] for row in rows] == ["sub-01_T1w_to_atlas_T1w", "sub-02_T1w_to_atlas_T1w"]
    assert {row["fixed"] for row in rows} == {str(atlas)}
    with pytest.raises(DataListError, match="no file fits"):
        pairs_to_one(atlas, str(tmp_path / "sub-*/func/*"))
