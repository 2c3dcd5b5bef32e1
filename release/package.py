# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Build the sdist and the wheel into dist/ and check them: ``make package``.

The package index shows README.md alone, without the files beside it, so its links are made absolute in a copy of the
tree that git tracks. Without --home, the address of the repository, pictures and such links become plain text.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?://|#)([^()\s]+)\)")


def with_absolute_links(text: str, home: str | None, tag: str) -> str:
    """Markdown whose relative links lead to the repository.

    Args:
        text: Markdown.
        home: address of the repository on a forge, such as https://github.com/OWNER/NAME; None: links become text.
        tag: of the version.
    """

    def absolute(match: re.Match[str]) -> str:
        picture, label, path = match.groups()
        if home is None:
            return "" if picture else label
        return f"{picture}[{label}]({home}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return _LINK.sub(absolute, text)


def packages_in(folder: Path) -> list[Path]:
    """The sdists, then the wheels in a folder, which holds the bundle of `make bundle` too."""
    return [*folder.glob("monai_nodeo-*.tar.gz"), *folder.glob("monai_nodeo-*.whl")]


def main() -> None:
    """Build, compare the contents with the tree, and let twine check the metadata."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", help="address of the repository, https://github.com/OWNER/NAME")
    home = parser.parse_args().home
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    dist = ROOT / "dist"
    for earlier in packages_in(dist):
        earlier.unlink()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in filter(None, tracked):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        (version,) = re.findall(r'^__version__ = "(.+)"', (tree / "monai_nodeo/__init__.py").read_text("utf-8"), re.M)
        readme = tree / "README.md"
        readme.write_text(with_absolute_links(readme.read_text("utf-8"), home, f"v{version}"), encoding="utf-8")
        # the wheel is made of the sdist, so that the sdist is known to be whole
        subprocess.run([sys.executable, "-m", "build", "--outdir", str(dist), str(tree)], check=True)
    sdist, wheel = packages_in(dist)
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    absent = sorted(name for name in tracked if name and not name.startswith(".github/") and name not in packed)
    if absent:
        sys.exit(f"{sdist.name} lacks {', '.join(absent)}; name them in MANIFEST.in.")
    with zipfile.ZipFile(wheel) as archive:
        print(f"{sdist.name}: {len(packed)} files; {wheel.name}: {len(archive.namelist())} files")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], check=True)


if __name__ == "__main__":
    main()
