# SPDX-License-Identifier: Apache-2.0
"""Store the pictures that the code of the pages in docs/examples saves: `python docs/make_pictures.py [PAGE ...]`."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "examples"


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
            shutil.copy(picture, FOLDER / picture.name)


if __name__ == "__main__":
    names = sys.argv[1:]
    for page in sorted(FOLDER.glob("*.md")):
        if page.stem != "index" and (not names or page.stem in names):
            print(f"== {page.stem}", flush=True)
            run_page(page)
