# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The notebooks, from top to bottom in a kernel; each has in `before` and `after` what it has made better."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One for all pages, because the imports take longest."""
    manager = KernelManager()
    yield manager
    manager.shutdown_kernel(now=True)


def shows_figure(cell: nbformat.NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_runs_and_ends_with_its_figure(page, kernel, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(page, as_version=4)
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert shows_figure(last)  # as it is kept
    first, check = (nbformat.v4.new_code_cell(source) for source in ("%reset -f", "assert after > before"))
    notebook.cells = [first, *notebook.cells, check]
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    assert shows_figure(last)
    said = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream"]
    assert [output.text for output in said if output.name == "stderr"] == []  # no warning
