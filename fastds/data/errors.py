# SPDX-License-Identifier: Apache-2.0
"""Errors of other libraries in messages of readers and writers."""


def first_line_of(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
