# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "monai_nodeo"
FLOORS = {"geometry": 0, "files": 0, "flows": 1, "losses": 1, "data": 1, "metrics": 2, "registration": 3, "report": 4}
OWNERS = {"torchdiffeq": "flows.solver", "triton": "geometry._triton", "numba": "geometry._numba"}
WITHOUT_TORCH = ("files", "data.keys", "data.lists", "data.list_formats", "registration.presets")


def test_imports_go_down_without_circles_and_libraries_have_one_owner() -> None:
    """Also within functions; names of a package count as its modules."""
    graph = {}
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix("/__init__").replace("/", "."): path for name, path in files.items()}
    for name, path in modules.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = [f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names]
        found += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        for top, _, rest in (module.partition(".") for module in found):
            assert name.startswith(OWNERS.get(top, "")), f"{name}: {top}"
            assert top not in ("torch", "monai") or not name.startswith(WITHOUT_TORCH), f"{name}: {top}"
            rooms = [module.split(".")[0] for module in (name, rest)]
            here, there = (FLOORS.get(room, 5) for room in rooms)
            assert top != "monai_nodeo" or rooms[0] == rooms[1] or there < here or here == 5, f"{name}: {rest}"
        ours = [module.removeprefix("monai_nodeo.") for module in found]
        graph[name] = {m for m in modules for o in ours if m in (o, o.rpartition(".")[0]) and m != name}
    TopologicalSorter(graph).prepare()
