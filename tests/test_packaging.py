# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import configparser
import importlib
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import monai_nodeo

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"monai_nodeo": "monai_nodeo", "bundle": "monai_nodeo/bundle", "configs": "monai_nodeo/configs"}


def sources(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in files}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize(("folder", "place"), SHIPPED.items())
def test_wheel_holds_every_file(folder, place, installed):
    nested = {f"{name}/" for name in ("bundle", "configs")} if folder == "monai_nodeo" else set()
    found = {name for name in sources(installed / place) if not name.startswith(tuple(nested))}
    assert found == sources(ROOT / folder)


def test_entry_point_is_the_command_line(installed):
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "monai-nodeo = monai_nodeo.apps.cli:main" in entry_points.read_text(encoding="utf-8")


def test_wheel_says_all_that_setup_says(installed):
    (file,) = installed.glob("*.dist-info/METADATA")
    said = message_from_string(file.read_text(encoding="utf-8"))
    config = configparser.ConfigParser(comment_prefixes="#")
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    stated = config["metadata"]
    for field, name in {"description": "Summary", "author": "Author", "license": "License"}.items():
        assert said[name] == stated[field]
    assert said["Keywords"].replace(",", ", ").replace("  ", " ") == stated["keywords"]
    assert said.get_all("Classifier") == stated["classifiers"].split("\n")[1:]
    assert set(said.get_all("Provides-Extra")) == set(config["options.extras_require"])
    assert SpecifierSet(said["Requires-Python"]) == SpecifierSet(config["options"]["python_requires"])
    needs = [need for need in map(Requirement, said.get_all("Requires-Dist")) if not need.marker]
    assert needs == [
        Requirement(line) for line in config["options"]["install_requires"].split("\n")[1:] if line[0] != "#"
    ]
    assert said.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("place", ["installed", "checkout"])
def test_bundle_and_presets_are_found(place, request, tmp_path):
    root = request.getfixturevalue("installed") if place == "installed" else ROOT
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from monai_nodeo.registration.presets import *; "
        "print(bundle_dir() / 'configs', preset_files(3, 'paper_lambda2')[-1])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    configs, preset = map(Path, shown.stdout.split())
    assert (configs / "inference.json").is_file()
    assert preset.is_file()
    assert configs.is_relative_to(root)
    assert preset.is_relative_to(root)


def test_what_setup_asks_for_is_pinned_to_one_version_that_fits():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    pins = {}
    for pin in map(Requirement, lines):
        (version,) = pin.specifier  # what is none stops pip
        assert version.operator == "=="
        pins[canonicalize_name(pin.name)] = version.version
    config = configparser.ConfigParser(comment_prefixes="#")
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    needs = [Requirement(line) for group in groups for line in group.split("\n") if line]
    for need in (need for need in needs if need.name != "monai-nodeo"):  # extras that take others in
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), need


def test_the_recipe_of_conda_asks_for_what_setup_asks_for():
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    text = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(jinja2.Template(text).render(PYTHON="python"))
    config = configparser.ConfigParser(comment_prefixes="#")
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    named = {"torch": "pytorch", "pytorch-ignite": "ignite", "isal": "python-isal", "matplotlib": "matplotlib-base"}

    def needs(group: str) -> dict[str, SpecifierSet]:
        lines = map(Requirement, filter(None, group.split("\n")))
        return {named.get(need.name, need.name).lower(): need.specifier for need in lines}

    expected = needs(config["options"]["install_requires"] + extras["report"] + extras["bundle"])
    expected["python"] = SpecifierSet(config["options"]["python_requires"])
    stated = [line.partition(" ") for line in recipe["requirements"]["run"]]
    assert {name: SpecifierSet(versions) for name, _, versions in stated} == expected
    (constrained,) = recipe["requirements"]["run_constrained"]
    assert constrained.split() == ["distributed", str(needs(extras["cohort"])["distributed"])]
    assert recipe["package"]["version"] == monai_nodeo.__version__
    assert recipe["build"]["entry_points"] == config["options.entry_points"]["console_scripts"].split("\n")[1:]
    host = needs("\n".join(line.replace(" ", "") for line in recipe["requirements"]["host"]))
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert host["setuptools"] == Requirement(build[0]).specifier
    for module in recipe["test"]["imports"]:
        importlib.import_module(module)


def test_packages_are_told_from_the_bundle_beside_them(tmp_path):
    for name in (
        "monai_nodeo-0.1.0-py3-none-any.whl",
        "monai_nodeo-0.1.0.tar.gz",
        "nodeo_image_registration_v0.1.0.zip",
    ):
        (tmp_path / name).touch()
    packages_in = runpy.run_path(str(ROOT / "release" / "package.py"))["packages_in"]
    assert [path.suffix for path in packages_in(tmp_path)] == [".gz", ".whl"]
    assert packages_in(tmp_path / "absent") == []
