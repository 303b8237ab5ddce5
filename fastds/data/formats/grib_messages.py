# SPDX-License-Identifier: Apache-2.0
"""Check of the sections of GRIB messages.

If the lengths or the order of the sections are wrong, ecCodes writes outside its buffers, which can end the process.
The sections are therefore checked before ecCodes reads a file.
"""

import itertools
import mmap
import os

_START, _END = b"GRIB", b"7777"
_LARGE_LENGTH_BIT = 0x800000  # bit of the length field of edition 1: the length has another encoding
_GRID, _BITMAP = 0x80, 0x40  # flags of the optional sections of edition 1
# Edition -> (number of bytes before the first section, number of bytes of a section's length field).
_EDITIONS = {1: (8, 3), 2: (16, 4)}
# Section of edition 2 -> sections that may follow; 0 is the end. Messages of several fields repeat later sections.
_FOLLOWING = {1: (2, 3), 2: (3,), 3: (4,), 4: (5,), 5: (6,), 6: (7,), 7: (2, 3, 4, 0)}


def check_messages(path: str | os.PathLike) -> None:
    """Check the sections of the messages of a GRIB file.

    The check ends at the first message of edition 1 whose length has the extended encoding, which only ecCodes decodes.
    Bytes between messages, such as WMO headers, are ignored.

    Args:
        path: File.

    Raises:
        ValueError: A message is truncated or of an unknown edition, or its sections do not fill it in the required
            order. The error names the number and the position of the message.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, number = data.find(_START), 1
            while at >= 0:
                end = _check_message(data, at, f"message {number}, at byte {at},")
                at, number = data.find(_START, end), number + 1


def _check_message(data: mmap.mmap, at: int, name: str) -> int:
    """Check the message at byte `at` and return the position of its end.

    A message of edition 1 with an extended length is not checked, and the end of the file is returned.

    Args:
        data: Memory-mapped file.
        at: Position of the first byte of the message.
        name: Description of the message for errors.

    Raises:
        ValueError: The message is truncated or of an unknown edition, or its sections do not fill it in the required
            order.
    """
    edition = _read_integer(data, at + 7, 1)
    if edition not in _EDITIONS:
        raise ValueError(f"{name} is of the edition {edition} or cut; expected 1 or 2")
    first, width = _EDITIONS[edition]
    length = _read_integer(data, at + 4, 3) if edition == 1 else _read_integer(data, at + 8, 8)
    if edition == 1 and length & _LARGE_LENGTH_BIT:
        return len(data)  # the length has an extended encoding, which only ecCodes decodes
    end = at + length
    if length < first + len(_END) or end > len(data):
        raise ValueError(f"{name} has the length {length}, and the file {len(data) - at} more bytes")
    if data[end - len(_END) : end] != _END:
        raise ValueError(f"{name} does not end with {_END.decode()} after its {length} bytes")
    position, last = at + first, end - len(_END)
    expected: tuple[int, ...] = (1,)
    following = _list_following_sections(_read_integer(data, position + 7, 1)) if edition == 1 else _FOLLOWING
    while position < last:
        size = _read_integer(data, position, width)
        section = expected[0] if edition == 1 else _read_integer(data, position + width, 1)
        if not section or section not in expected or size <= width or position + size > last:
            allowed = " or ".join(f"section {one}" if one else "the end" for one in expected)
            found = f"a section {section} of {size}" if section else str(last - position)
            raise ValueError(f"{name} has {found} bytes where {allowed} is expected, and {last - position} are left")
        expected, position = following[section], position + size
    if 0 not in expected:
        raise ValueError(f"{name} ends before its section {expected[0]}")
    return end


def _list_following_sections(flags: int) -> dict[int, tuple[int, ...]]:
    """Return {section: (next section,)} of a message of edition 1, given the flags of its section 1."""
    order = [1, *([2] if flags & _GRID else []), *([3] if flags & _BITMAP else []), 4, 0]
    return {one: (other,) for one, other in itertools.pairwise(order)}


def _read_integer(data: mmap.mmap, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
