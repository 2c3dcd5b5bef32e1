# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The download, from a small archive that is served here."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from experiments.oasis import Archive, fetch
from monai_nodeo.data import load_datalist

SUBJECTS = [1, 2, 10, 20, 30, 40, *range(438, 458)]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that its files are served at."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def make_archive(served: tuple[Path, str], without: str = "nothing", size: int | None = None) -> Archive:
    """An archive like the public one, perhaps without a file or cut after some bytes, with its true checksum."""
    folder, address = served
    for subject in SUBJECTS:
        inside = folder / "tree" / f"OASIS_OAS1_{subject:04d}_MR1"
        inside.mkdir(parents=True)
        for file in ("slice_norm.nii.gz", "slice_seg24.nii.gz"):
            (inside / file).write_text(f"{subject} {file}")
    file = folder / "small.tar"
    with tarfile.open(file, "w") as archive:
        for path in sorted((folder / "tree").rglob("*")):
            if without not in str(path):
                archive.add(path, path.relative_to(folder / "tree"), recursive=False)
    file.write_bytes(file.read_bytes()[:size])
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return Archive("oasis2d", f"{address}/small.tar", md5, "slice_norm.nii.gz", "slice_seg24.nii.gz")


def test_archive_becomes_a_folder_and_lists(served, tmp_path):
    target = tmp_path / "new" / "data"
    atlases, validation = fetch(make_archive(served), target)
    rows = load_datalist(atlases)
    assert len(rows) == 5 * (len(SUBJECTS) - 1)
    assert all(Path(row[key]).is_file() for row in rows for key in ("fixed", "moving", "fixed_label", "moving_label"))
    assert {row["id"][-4:] for row in rows} == {"0001", "0010", "0020", "0030", "0040"}
    pairs = [row["id"] for row in json.loads(validation.read_text(encoding="utf-8"))]
    assert (len(pairs), pairs[0], pairs[-1]) == (19, "0439_to_0438", "0457_to_0456")
    assert "OASIS_OAS1_0438_MR1" in load_datalist(validation)[0]["fixed"]


def test_what_is_there_is_not_downloaded_again(served, tmp_path):
    archive = make_archive(served)
    lists = fetch(archive, tmp_path / "data")
    lists[0].unlink()
    assert fetch(archive._replace(url="http://127.0.0.1:1/gone.tar"), tmp_path / "data") == lists
    assert lists[0].is_file()


@pytest.mark.parametrize(
    ("broken", "changes", "error"),
    [
        ({}, {"md5": "0" * 32}, OSError),
        ({"size": 5000}, {}, OSError),
        ({"without": "0020_MR1/slice_seg24"}, {}, ValueError),
        ({"without": "0440_MR1"}, {}, ValueError),
        ({}, {"url": "{}/missing.tar"}, OSError),
    ],
    ids=["another file", "cut short", "file missing", "subject missing", "not there"],
)
def test_broken_download_leaves_nothing(broken, changes, error, served, tmp_path):
    archive = make_archive(served, **broken)
    changes = {key: value.format(served[1]) for key, value in changes.items()}
    with pytest.raises(error):
        fetch(archive._replace(**changes), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
