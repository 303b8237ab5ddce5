# SPDX-License-Identifier: Apache-2.0
"""Tests that docs/papers.md names existing classes, options, configurations and files."""

import re
from pathlib import Path

import pytest

from fastds import models
from fastds.training.command import find_configurations

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fastds").rglob("*.py"))
SHIPPED = find_configurations()
MANUAL = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]


def rows():
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("|")
    ]


def test_papers_table_names_existing_files_and_classes():
    for row in rows():
        if len(row) != 3 or row[0] in ("in the paper", "in the abstract") or set(row[0]) <= set("-|"):
            continue
        paths = re.findall(r"`([^`]+)`", row[2])
        texts = []
        for path in paths:
            found = ROOT / path if path.startswith("fastds/") else ROOT / "fastds" / "models" / path
            assert found.exists(), f"{path} of the row {row[0]!r}"
            texts.append(found.read_text(encoding="utf-8") if found.is_file() else "")
        for name in re.findall(r"`([A-Z][A-Za-z0-9]+)`", row[1]):
            assert any(f"class {name}(" in text for text in texts), f"{name} is in none of {paths}"


@pytest.mark.parametrize("word", sorted(set(re.findall(r"`(?:presets? )?([a-z][a-z0-9]*(?:-[a-z0-9+]+)+)`", PAGE))))
def test_papers_table_names_known_presets_and_configurations(word):
    assert word in models.available() or word in SHIPPED or word in {"db-rnn", "wgan-gp", "dwd-12"}


def test_papers_table_names_existing_options():
    """The page writes options as data.X, loss.X, --X=... and as keyword arguments."""
    words = set(re.findall(r"`(?:--)?(?:[a-z]+\.)*([a-z_]+)(?:=[^`]*)?`", PAGE))
    missing = [word for word in words if not re.search(rf"\b{word}\b", SOURCE)]
    assert not missing


PAGES = ["CONTRIBUTING.md", "README.md", "CHANGELOG.md", *(p.relative_to(ROOT).as_posix() for p in MANUAL)]


@pytest.mark.parametrize("page", PAGES)
def test_papers_table_names_existing_documents(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])((?:csrc|kernels|fastds|tests|bench)/[\w/.*-]+)(?!\w*<)\b", text)
    assert named or page not in ("CONTRIBUTING.md", "README.md")
    assert [path for path in named if not list(ROOT.glob(path.rstrip(".")))] == []
