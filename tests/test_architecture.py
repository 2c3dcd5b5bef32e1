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
    "layers": set(),
    "slabs": set(),
    "sampling": {"slabs"},
    "kernels": set(),
    "kernels.regularity": set(),
    "kernels.windows": set(),
    "windows": {"kernels", "layers"},
    "fields": {"layers", "slabs"},
    "integration": set(),
    "host_memory": set(),
    "cuda_graphs": set(),
    "transform_io.atomic": set(),
    "transform_io.reading": set(),
    "transform_io.grid": {"transform_io.reading"},
    "transform_io.nifti": {"transform_io.atomic", "transform_io.grid"},
    "transform_io.points": {"transform_io.atomic", "transform_io.grid"},
    "transform_io.transform": {"transform_io.grid"},
    "transform_io.formats": {f"transform_io.{part}" for part in ("atomic", "grid", "nifti", "transform")},
    "transform_io": {
        f"transform_io.{part}" for part in ("atomic", "formats", "grid", "nifti", "points", "reading", "transform")
    },
    "examples": set(),
    "evaluation": set(),
    # 2
    "networks.base": set(),
    "networks.nodeo": {"layers", "networks.base"},
    "networks.parametrisations": {"fields"},
    "networks.eulerian": {"fields", "layers", "networks.base", "networks.parametrisations", "sampling"},
    "networks": {f"networks.{part}" for part in ("base", "eulerian", "nodeo", "parametrisations")},
    "losses.similarity": {"windows"},
    "losses.local_correlation": {"kernels", "losses.similarity", "slabs", "windows"},
    "losses.regularity": {"fields", "kernels", "slabs"},
    "losses.registration": {"landmarks", "losses.regularity", "losses.similarity"},
    "losses": {f"losses.{part}" for part in ("local_correlation", "registration", "regularity", "similarity")},
    "folding": {"fields", "slabs"},
    "levels": {"cropping", "fields"},
    "metrics": {"fields", "folding"},
    "handlers": {"metrics"},
    "visualize": {"visualize.charts", "visualize.figures"},
    "visualize.charts": {"visualize.planes"},
    "visualize.figures": {"visualize.panels", "visualize.planes"},
    "visualize.panels": {"visualize.planes"},
    "visualize.planes": {"fields"},
    "engines": {"cuda_graphs", "fields", "integration", "levels", "networks", "sampling"},
    "pair_keys": set(),
    "list_formats": set(),
    "pair_lists": {"list_formats", "pair_keys"},
    "pairs": {"pair_keys", "transform_io"},
    "image_geometry": {"fields", "pairs"},
    "grid_matching": {"image_geometry", "losses", "pairs"},
    "affine_registration": {"image_geometry", "pairs"},
    "alignment": {"affine_registration", "pairs", "transform_io"},
    "pair_transforms": {"image_geometry", "pairs", "transform_io"},
    "landmarks": {"fields"},
    "cropping": set(),
    "mind": {"losses"},
    "correlation_ratio": {"losses", "windows"},
    "inversion": {"fields", "transform_io"},
    "resampling": {"transform_io"},
    # 3
    "datalist": {"pair_lists", "pairs"},
    "inferers": {
        "cropping",
        "engines",
        "fields",
        "folding",
        "handlers",
        "host_memory",
        "image_geometry",
        "integration",
        "levels",
        "losses",
        "networks",
    },
    "transform_figures": {"fields", "metrics", "transform_io"},
    "transform_evaluation": {"evaluation", "resampling", "transform_io"},
    "pair_figures": {"evaluation", "fields", "image_geometry", "landmarks", "metrics", "pairs"},
    "slice_interpolation": {"fields", "inferers", "networks"},
    "thick_slices": {"fields", "folding", "image_geometry", "layers", "pairs", "slice_interpolation"},
    # 4
    "transforms": {"alignment", "grid_matching", "image_geometry", "inferers", "networks", "pairs", "thick_slices"},
    # 5: the fronts; no module below imports them
    "demo": {"evaluation", "examples", "fields", "transform_io", "transforms", "visualize"},
    "outputs": {
        "datalist",
        "fields",
        "handlers",
        "image_geometry",
        "inferers",
        "pair_figures",
        "pairs",
        "transform_io",
    },
    "report": {"report.cohort", "report.handler", "report.page"},
    "report.cohort": {"report.layers", "report.page", "transform_io", "visualize"},
    "report.evidence": set(),
    "report.handler": {"report.cohort", "report.page"},
    "report.layers": {"visualize.panels", "visualize.planes"},
    "report.page": {
        *(f"report.{part}" for part in ("evidence", "layers", "pair", "verdict")),
        *("transform_io", "visualize", "visualize.panels", "visualize.planes"),
    },
    "report.pair": {"image_geometry", "pair_transforms", "pairs", "transform_io"},
    "report.verdict": {"report.evidence"},
    # 6: what a bundle's config calls
    "config": {"outputs"},
    # 7: many pairs; what it imports from MONAI and from above it imports when there is something to run
    "cohort": set(),
    "cohort.inputs": {"pair_keys"},
    "cohort.storage": set(),
    "cohort.ledger": {"cohort.inputs", "transform_io"},
    "cohort.pair_run": {"outputs", "pair_keys"},
    "cohort.task": {"cohort.inputs", "cohort.ledger", "cohort.pair_run", "cohort.storage", "pair_lists"},
    "cohort.settings": {"cohort.inputs", "cohort.storage", "pair_keys", "transform_io"},
    "cohort.summary": {"cohort.ledger", "cohort.storage", "transform_io"},
    "cohort.run": {
        *(f"cohort.{part}" for part in ("ledger", "pair_run", "storage", "summary", "task")),
        *("pair_lists", "report"),
    },
    "cohort.dask_engines": {"cohort.task"},
    "cohort.ranks": {
        *(f"cohort.{part}" for part in ("ledger", "run", "settings", "storage", "summary")),
        *("outputs", "pair_lists"),
    },
    # 8: the command line; a config that it names is run, not imported
    "resources": set(),
    "cli": set(),
    "cli.settings": set(),
    "cli.cohort": {
        *(f"cohort.{part}" for part in ("dask_engines", "ledger", "run", "settings", "storage", "summary")),
        *("cli.settings", "pair_lists", "resources", "transform_io"),
    },
    "cli.register": {"cli.settings", "resources", "transform_io"},
    "cli.report": {"report"},
    "cli.figures": set(),
    "cli.apply": {"resampling", "transform_io"},
    "cli.evaluate": {"cli.figures", "resampling", "transform_evaluation", "transform_figures", "transform_io"},
    "cli.convert": {"transform_io"},
    "cli.info": {"cli.figures", "transform_figures", "transform_io"},
    "cli.invert": {"cli.figures", "inversion", "transform_io"},
    "__main__": {"cli"},
}

# Libraries that one module alone knows.
SOLE_USERS = {
    "torchdiffeq": {"integration"},
    "triton": {"kernels.regularity", "kernels.windows"},
    "distributed": {"cohort.dask_engines"},
}


def module_name(path: Path) -> str:
    """Name within the package; that of a folder for its ``__init__.py``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


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
    # a name in a module of a folder does not count as the folder's own
    return {
        max((m for m in SOURCES if name == m or name.startswith(f"{m}.")), key=len, default=name) for name in dotted
    } & set(SOURCES)


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

    assert {module.split(".")[0] for module in speaking} == {"transform_io"}


def test_reader_of_imports_sees_every_form() -> None:
    source = "import monai_nodeo.fields\nfrom monai_nodeo import layers\ndef f():\n    from monai_nodeo.losses import x"

    assert ours(ast.parse(source)) == {"fields", "layers", "losses"}


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, monai_nodeo; print(monai_nodeo.__version__, *{'torch', 'monai', 'numpy'} & set(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)

    assert shown.stdout.split() == [monai_nodeo.__version__]
