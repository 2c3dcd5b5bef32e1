# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of the reports in this folder, with the Chromium of the system.

python docs/screenshot.py out/pair/report.html docs/report_3d.png --view edges
"""

from __future__ import annotations

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

_COLOURS = 128  # of the palette: a third of the size, and the eye sees no difference


def main() -> None:
    """Open a page and save what it shows above its provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--view", help="view of the images, such as edges or labels")
    parser.add_argument("--width", type=int, default=1100, help="of the window (%(default)s)")
    parser.add_argument("--height", type=int, default=1000, help="of the picture at most (%(default)s)")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size = {"width": options.width, "height": options.height}
        page = browser.new_page(viewport=size, color_scheme="dark" if options.dark else "light", offline=True)
        page.goto(options.page.absolute().as_uri())
        if options.view:
            page.locator(f'input[name="view"][value="{options.view}"]').check(force=True)
        # file paths belong to the machine
        page.add_style_tag(content="#provenance { display: none; }")
        shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    shot.quantize(_COLOURS).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
