# SPDX-License-Identifier: Apache-2.0
"""Runs one command for each kind of faulty file; `python -m tests.faulty` runs all commands."""

from tests.faulty.__main__ import tries


def one_in_turn(number, refusing, commands):
    """Select a command that refuses the file, which is fast, or else the second one, which does not train."""
    return [refusing[number % len(refusing)] if refusing else commands[1]]


def test_malformed_files_are_rejected(tmp_path):
    found = list(tries(tmp_path, pick=one_in_turn))
    assert len(found) > 60
    assert [f for f in found if f[3] != "right"] == []
