# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs: pages from outside docs/, links that hold in both places, and nothing from elsewhere."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # on the site -> in the repository
    "index.md": "README.md",
    "bundle.md": "bundle/docs/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
NOTEBOOKS = {f"tutorials/{path.stem}.md": path for path in sorted(ROOT.glob("docs/tutorials/*.ipynb"))}
SITE = {source: page for page, source in PAGES.items()}  # in the repository -> on the site
SITE.update({path.relative_to(ROOT).as_posix(): page for page, path in NOTEBOOKS.items()})
OTHERS = (
    "LICENSE",
    "configs/*.json",
    "configs/*/*.json",
    "bundle/LICENSE",
    "bundle/configs/*.json",
)  # that pages link to
SHIM = "assets/javascripts/iframe-worker.js"  # workers on pages from the disk, see mkdocs.yml
_LINK = re.compile(r"\]\((?!\w+:|#)([^()#\s]+)")
_ELSEWHERE = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\s(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""")
_ROLE = re.compile(r":py:\w+:(?=<code>)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, notebook in NOTEBOOKS.items():
        text, resources = MarkdownExporter().from_filename(
            str(notebook), {"output_files_dir": f"{notebook.stem}_files"}
        )
        files.append(File.generated(config, page, content=text))
        for name, figure in resources["outputs"].items():
            files.append(File.generated(config, f"tutorials/{name}", content=figure))
    for path in (path for pattern in OTHERS for path in sorted(ROOT.glob(pattern))):
        name = f"files/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, SHIM, abs_src_path=str(ROOT / "release" / "vendor" / "iframe-worker.js")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into those of the site."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")

    def on_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if (ROOT / target).is_dir():
            target = f"{target}/README.md"
        place = SITE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}")
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}"

    return _LINK.sub(on_site, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles of Sphinx off references in docstrings."""
    return _ROLE.sub("", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    found = _ELSEWHERE.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri}: fetches from elsewhere ({found[0]}); put it into the repository.")
    return output
