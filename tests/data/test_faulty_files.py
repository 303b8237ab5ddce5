# SPDX-License-Identifier: Apache-2.0
"""Each kind of faulty file through one of the commands that read it; `python -m tests.faulty` tries all."""

from tests.faulty.__main__ import tries


def one_in_turn(number, refusing, commands):
    """One that refuses the file, which is quick; else the second, which trains nothing."""
    return [refusing[number % len(refusing)] if refusing else commands[1]]


def test_malformed_files_are_rejected(tmp_path):
    found = list(tries(tmp_path, pick=one_in_turn))
    assert len(found) > 60
    assert [f for f in found if f[3] != "right"] == []
