# SPDX-License-Identifier: Apache-2.0
"""How 3x3 convolutions are computed: by the Winograd engine, directly by the library, or by what measures faster."""

from contextlib import contextmanager

ALGORITHMS = ("auto", "winograd", "direct")
_current = "auto"


def checked(name: str) -> str:
    """The name itself; ValueError when it is no algorithm."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {name!r}")
    return name


def current() -> str:
    """The algorithm of the calls that name none."""
    return _current


@contextmanager
def convolution(algorithm: str):
    """Chooses how every fastds.ops.conv3x3 inside the block is computed, in all threads of the process.

    Graphs compiled or exported before keep what they were traced with.

    Args:
        algorithm: "auto", what measures faster for each shape; "winograd", the engine of fastds for every tensor on a
            CPU; "direct", torch's own convolution, whose numbers parity checks want.

    Raises:
        ValueError: another name.
    """
    global _current
    before, _current = _current, checked(algorithm)
    try:
        yield
    finally:
        _current = before
