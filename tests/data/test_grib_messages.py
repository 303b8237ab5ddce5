# SPDX-License-Identifier: Apache-2.0
"""Tests of damaged sections of GRIB messages, with which ecCodes would read invalid memory."""

import numpy as np
import pytest

from fastds.data import open_dataset
from fastds.data.formats.grib_messages import check_messages
from tests.faulty.drawn_grib import write_levels, write_regular

pytest.importorskip("eccodes", reason="the extra test brings it")


def drawn(folder, edition, write=write_regular):
    """Return the bytes of a random GRIB file of this edition without a header before the first message."""
    rng = np.random.default_rng(0)
    while True:
        found = write(rng, folder)
        if found.how["edition"] == edition and not found.how.get("header"):
            return bytearray(found.path.read_bytes())


def sections(content):
    """Return the position of each section of the first message of edition 2, by section number."""
    at, end, found = 16, int.from_bytes(content[8:16], "big") - 4, {}
    while at < end:
        found[content[at + 4]] = at
        at += int.from_bytes(content[at : at + 4], "big")
    return found


@pytest.mark.parametrize("write", [write_regular, write_levels])
@pytest.mark.parametrize("edition", [1, 2])
def test_sound_messages(tmp_path, edition, write):
    content = drawn(tmp_path, edition, write)
    for between in (b"", b"****0000012345****\n", bytes(97)):
        (tmp_path / "a.grib").write_bytes(between + content + between + content + between)
        check_messages(tmp_path / "a.grib")
    (tmp_path / "a.grib").write_bytes(b"")
    check_messages(tmp_path / "a.grib")


@pytest.mark.parametrize(
    ("change", "expected_message"),
    [
        (
            lambda c, at: c.__setitem__(at[3] + 1, 16),
            r"has a section 3 of 1048\d\d\d bytes where section 2 or section 3 is",
        ),
        (lambda c, at: c.__setitem__(at[3] + 4, 7), "has a section 7 of .* where section 2 or section 3 is expected"),
        (lambda c, at: c.__setitem__(at[7] + 4, 6), "has a section 6 of .* where section 7 is expected"),
        (lambda c, at: c.__setitem__(slice(at[4], at[4] + 4), bytes(4)), "has a section 4 of 0 bytes"),
        (lambda c, at: c.__setitem__(7, 9), "message 1, at byte 0, is of the edition 9 or cut"),
        (lambda c, at: c.__setitem__(12, 1), "has the length .*, and the file .* more bytes"),
        (lambda c, at: c.__setitem__(slice(len(c) - 60, len(c)), b""), "has the length .*, and the file"),
        (lambda c, at: c.__setitem__(int.from_bytes(c[8:16], "big") - 1, 0), "does not end with 7777"),
    ],
)
def test_damaged_messages_of_edition_2(tmp_path, change, expected_message):
    content = drawn(tmp_path, 2)
    change(content, sections(content))
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.grib looks like GRIB but cannot be read .*{expected_message}"):
        open_dataset(tmp_path / "a.grib")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, 1, r"has a section 1 of 655\d\d bytes where section 1 is expected"),
        (15, 0, r"has \d+ bytes where the end is expected"),  # as if there were no grid
        (7, 3, "is of the edition 3"),
    ],
)
def test_damaged_messages_of_edition_1(tmp_path, place, value, message):
    content = drawn(tmp_path, 1)
    content[place] = value
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_messages(tmp_path / "a.grib")


def test_several_fields_in_one_message(tmp_path):
    """Sections 4 to 7 may repeat."""
    content = drawn(tmp_path, 2)
    content = content[: int.from_bytes(content[8:16], "big")]
    at = sections(content)
    again = content[:-4] + content[at[4] : -4] + b"7777"
    again[8:16] = len(again).to_bytes(8, "big")
    (tmp_path / "a.grib").write_bytes(again)
    check_messages(tmp_path / "a.grib")
    ends_early = content[: at[7]] + b"7777"
    ends_early[8:16] = len(ends_early).to_bytes(8, "big")
    (tmp_path / "a.grib").write_bytes(ends_early)
    with pytest.raises(ValueError, match="ends before its section 7"):
        check_messages(tmp_path / "a.grib")
