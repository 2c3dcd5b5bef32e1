# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "monai_nodeo"
FLOORS = {"geometry": 0, "files": 0, "flows": 1, "losses": 1, "data": 1, "metrics": 2, "registration": 3, "report": 4}
FLOORS["extras"] = -1  # names what is not installed, for every room
OWNERS = {"torchdiffeq": "flows.solvers.torchdiffeq_solver", "triton": "geometry._triton", "numba": "geometry._numba"}
OWNERS |= dict.fromkeys(("napari", "magicgui", "qtpy"), "plugins.napari_widget")
WITHOUT_TORCH = ("files", "geometry.determinants", "metrics.transforms", "registration.presets")
WITHOUT_TORCH += ("data.keys", "data.lists", "data.list_formats")


def test_imports_go_down_without_circles_and_libraries_have_one_owner():
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {name.removesuffix(".__init__"): set() for name in files}
    for name, path in zip(graph, files.values(), strict=True):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # also within functions
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                top, _, rest = (start + alias.name).partition(".")
                assert name.startswith(OWNERS.get(top, "")), f"{name}: {top}"
                assert top not in ("torch", "monai") or not name.startswith(WITHOUT_TORCH), f"{name}: {top}"
                if top == "monai_nodeo":
                    room, other = (module.split(".")[0] for module in (name, rest))
                    assert room == other or room not in FLOORS or FLOORS.get(other, 5) < FLOORS[room], f"{name}: {rest}"
                    graph[name] |= {m for m in (rest, rest.rpartition(".")[0]) if m in graph and m != name}
    TopologicalSorter(graph).prepare()
