# SPDX-License-Identifier: Apache-2.0
"""Store the pictures that docs/plot.md and docs/examples save: `python docs/make_pictures.py [PAGE ...]`."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

MOST_BYTES = 100_000  # larger pictures get a palette
DOCS = Path(__file__).parent


def run_page(page: Path) -> None:
    """Run all Python blocks of a page in a temporary folder, and copy the PNG files to the folder of the page."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(compile("\n".join(blocks), page.name, "exec"), {"__name__": "__main__"})
        finally:
            os.chdir(here)
        for picture in Path(folder).glob("*.png"):
            target = page.parent / picture.name
            shutil.copy(picture, target)
            if target.stat().st_size > MOST_BYTES:
                Image.open(target).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    names = sys.argv[1:]
    for page in [*sorted((DOCS / "examples").glob("*.md")), DOCS / "plot.md"]:
        if page.stem != "index" and (not names or page.stem in names):
            print(f"== {page.stem}", flush=True)
            run_page(page)
