# SPDX-License-Identifier: Apache-2.0
"""Ties a built _fastds to its sources. setup.py runs this file by its path, so it imports nothing of ours."""

import hashlib


def source_hash(root):
    """Hash of what _fastds is made of under `root` (a checkout, as pathlib.Path): setup.py, and csrc without emu."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("setup.py"), *(root / "csrc").rglob("*")]):
        if path.parent.name != "emu" and path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py"}:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
