# SPDX-License-Identifier: Apache-2.0
"""The sections of GRIB messages, whose lengths and order are checked before ecCodes reads them: wrong ones let it write
beyond its memory, which ends the process."""

import mmap
import os

_START, _END = b"GRIB", b"7777"
_LARGE = 0x800000  # of the length of an edition 1: counted otherwise
_GRID, _BITMAP = 0x80, 0x40  # flags of the sections that edition 1 may have
# Edition -> bytes before the first section, and bytes of the length of a section.
_EDITIONS = {1: (8, 3), 2: (16, 4)}
# Section of edition 2 -> those that may follow; 0 is the end. Of several fields in a message the later sections repeat.
_FOLLOWING = {1: (2, 3), 2: (3,), 3: (4,), 4: (5,), 5: (6,), 6: (7,), 7: (2, 3, 4, 0)}


def check_messages(path: str | os.PathLike) -> None:
    """Walk over the sections of all messages of a file. What lies between messages, such as headers of the WMO, counts
    for nothing.

    Raises: ValueError where a message is cut or its sections do not fill it in their order, with its number and place.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, number = data.find(_START), 1
            while at >= 0:
                end = _end_of_message(data, at, f"message {number}, at byte {at},")
                at, number = data.find(_START, end), number + 1


def _end_of_message(data: mmap.mmap, at: int, name: str) -> int:
    """Where a message ends; ValueError unless its sections fill it."""
    edition = _number(data, at + 7, 1)
    if edition not in _EDITIONS:
        raise ValueError(f"{name} is of the edition {edition} or cut; expected 1 or 2")
    first, width = _EDITIONS[edition]
    length = _number(data, at + 4, 3) if edition == 1 else _number(data, at + 8, 8)
    if edition == 1 and length & _LARGE:
        return len(data)  # longer than the format foresees: ecCodes finds out
    end = at + length
    if length < first + len(_END) or end > len(data):
        raise ValueError(f"{name} has the length {length}, and the file {len(data) - at} more bytes")
    if data[end - len(_END) : end] != _END:
        raise ValueError(f"{name} does not end with {_END.decode()} after its {length} bytes")
    place, last = at + first, end - len(_END)
    expected: tuple[int, ...] = (1,)
    following = _following_1(_number(data, place + 7, 1)) if edition == 1 else _FOLLOWING
    while place < last:
        size = _number(data, place, width)
        section = expected[0] if edition == 1 else _number(data, place + width, 1)
        if not section or section not in expected or size <= width or place + size > last:
            wanted = " or ".join(f"section {one}" if one else "the end" for one in expected)
            found = f"a section {section} of {size}" if section else str(last - place)
            raise ValueError(f"{name} has {found} bytes where {wanted} is expected, and {last - place} are left")
        expected, place = following[section], place + size
    if 0 not in expected:
        raise ValueError(f"{name} ends before its section {expected[0]}")
    return end


def _following_1(flags: int) -> dict[int, tuple[int, ...]]:
    """Section of edition 1 -> the one that follows, by the flags of the first."""
    order = [1, *([2] if flags & _GRID else []), *([3] if flags & _BITMAP else []), 4, 0]
    return {one: (other,) for one, other in zip(order[:-1], order[1:], strict=True)}


def _number(data: mmap.mmap, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
