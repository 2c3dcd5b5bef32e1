# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import monai_nodeo

PACKAGE = Path(monai_nodeo.__file__).parent
FLOORS = (("geometry", "files"), ("flows", "losses", "data"), ("metrics",), ("registration",), ("report",))
OWNERS = {"torchdiffeq": "flows/solver.py", "triton": "geometry/_triton/", "numba": "geometry/_numba/"}
WITHOUT_TORCH = ("files/", "data/keys.py", "data/lists.py", "data/list_formats.py", "registration/presets.py")


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, also within functions; names of a package count as its modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(room: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


FILES = {path.relative_to(PACKAGE).as_posix(): list(imports(path)) for path in PACKAGE.rglob("*.py")}


def test_rooms_import_lower_floors_only() -> None:
    for name, found in FILES.items():
        room = name.split("/")[0].removesuffix(".py")
        for target in (module.split(".")[1] for module in found if module.startswith("monai_nodeo.")):
            assert target == room or floor(target) < floor(room) or len(FLOORS) == floor(room), f"{name}: {target}"


def test_no_circles() -> None:
    modules = {name[:-3].removesuffix("/__init__").replace("/", "."): found for name, found in FILES.items()}
    graph = {
        module: {t for t in modules for f in found if f"monai_nodeo.{t}" in (f, f.rpartition(".")[0]) and t != module}
        for module, found in modules.items()
    }
    list(TopologicalSorter(graph).static_order())


def test_libraries_have_one_owner() -> None:
    for name, found in FILES.items():
        for module in (module.split(".")[0] for module in found):
            assert name.startswith(OWNERS.get(module, "")), f"{name}: {module}"
            assert module not in ("torch", "monai") or not name.startswith(WITHOUT_TORCH), f"{name}: {module}"
