# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import monai_nodeo

PACKAGE = Path(monai_nodeo.__file__).parent

# Module -> those of ours that it may import. A new module is put here first; an edge goes down the layers only.
ALLOWED: dict[str, set[str]] = {
    # The package itself imports nothing: its version is there at once.
    "__init__": set(),
    # 1: nothing of ours
    "fields": set(),
    "layers": set(),
    "integration": set(),
    "handlers": set(),
    "host_memory": set(),
    "transform_io": set(),
    "examples": set(),
    "evaluation": set(),
    # 2
    "networks": {"layers"},
    "losses": {"fields", "layers"},
    "metrics": {"fields"},
    "visualize": {"fields"},
    "engines": {"fields", "integration"},
    "pair_transforms": {"transform_io"},
    # 3
    "datalist": {"pair_transforms"},
    "inferers": {"engines", "handlers", "host_memory", "integration", "losses", "networks"},
    # 4
    "transforms": {"fields", "inferers", "networks"},
    # 5: the fronts; no module below imports them
    "demo": {"evaluation", "examples", "fields", "transform_io", "transforms", "visualize"},
    "outputs": {"datalist", "evaluation", "fields", "inferers", "metrics", "transform_io"},
    # 6: what a bundle's config calls
    "config": {"outputs"},
}

# Libraries that one module alone knows.
SOLE_USERS = {"torchdiffeq": {"integration"}}

SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported_names(tree: ast.AST) -> set[str]:
    """Dotted names of everything that is imported, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import; write it in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(tree: ast.AST) -> set[str]:
    """Modules of the package among the imports."""
    dotted = {name.removeprefix("monai_nodeo.") for name in imported_names(tree) if name.startswith("monai_nodeo.")}
    return {module for module in SOURCES for name in dotted if name == module or name.startswith(f"{module}.")}


def words(tree: ast.AST) -> set[str]:
    """Names and one-word strings: what the code uses, not what its prose says."""
    found = set()
    for node in ast.walk(tree):
        found |= {str(value) for _, value in ast.iter_fields(node) if isinstance(value, str)}
    return {word for word in found if " " not in word}


def test_every_module_has_its_place() -> None:
    assert set(SOURCES) == set(ALLOWED), "say in ALLOWED what a new module may import, take out one that is gone"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_the_layers(module: str) -> None:
    assert ours(SOURCES[module]) <= ALLOWED[module]


def test_imports_have_no_cycle() -> None:
    for graph in (ALLOWED, {module: ours(tree) for module, tree in SOURCES.items()}):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(("library", "users"), SOLE_USERS.items())
def test_library_is_known_to_its_owner_only(library: str, users: set[str]) -> None:
    importing = {m for m, tree in SOURCES.items() if any(n.split(".")[0] == library for n in imported_names(tree))}

    assert importing == users


def test_only_the_files_know_lps() -> None:
    speaking = {m for m, tree in SOURCES.items() if any("lps" in w.lower().split("_") for w in words(tree))}

    assert speaking == {"transform_io"}


def test_reader_of_imports_sees_every_form() -> None:
    source = "import monai_nodeo.fields\nfrom monai_nodeo import layers\ndef f():\n    from monai_nodeo.losses import x"

    assert ours(ast.parse(source)) == {"fields", "layers", "losses"}


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, monai_nodeo; print(monai_nodeo.__version__, *{'torch', 'monai', 'numpy'} & set(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)

    assert shown.stdout.split() == [monai_nodeo.__version__]
