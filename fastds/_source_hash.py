# SPDX-License-Identifier: Apache-2.0
"""Hash of the sources of the compiled module _fastds.

setup.py runs this file by its path, so it imports no other module of fastds.
"""

import hashlib


def source_hash(root):
    """Return the hash of setup.py and csrc (without csrc/emu) under `root`, a checkout as pathlib.Path."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("setup.py"), *(root / "csrc").rglob("*")]):
        if path.parent.name != "emu" and path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py"}:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
