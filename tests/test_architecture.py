# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "monai_nodeo"
FLOORS = {"geometry": 0, "files": 0, "flows": 1, "losses": 1, "data": 1, "metrics": 2, "registration": 3, "report": 4}
FLOORS |= {"apps": 5, "__init__": 6, "__main__": 6, "extras": -1}  # extras: what is not installed, for every room
OWNERS: dict[str, str | tuple[str, ...]] = {"torchdiffeq": "flows.solvers.torchdiffeq_solver"}
OWNERS |= {library: (f"geometry._{library}", f"losses._{library}") for library in ("numba", "triton")}
OWNERS |= dict.fromkeys(("napari", "magicgui", "qtpy"), "apps.napari.widget")
WITHOUT_TORCH = ("files", "geometry.determinants", "metrics.transform_figures", "registration.presets")
WITHOUT_TORCH += ("data.errors", "data.ids", "data.keys", "data.lists", "data.list_formats")


def test_imports_go_down_without_circles_and_libraries_have_one_owner():
    paths = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    assert {name.split(".")[0] for name in files} == {*FLOORS}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # also within functions
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                top, _, rest = (start + alias.name).partition(".")
                assert name.startswith(OWNERS.get(top, "")), f"{name}: {top}"
                assert top not in ("torch", "monai") or not name.startswith(WITHOUT_TORCH), f"{name}: {top}"
                if top == "monai_nodeo" and rest:
                    (room, *part), (other, *others) = (module.split(".") for module in (name, rest))
                    assert room == other or FLOORS.get(other, 6) < FLOORS[room], f"{name}: {rest}"
                    graph[name] |= {m for m in (rest, rest.rpartition(".")[0]) if m in graph and m != name}
                    if room == other == "apps" and part[0] != others[0]:  # nor do the apps use one another in circles
                        graph.setdefault(f"app {part[0]}", set()).add(f"app {others[0]}")
    TopologicalSorter(graph).prepare()
