# SPDX-License-Identifier: Apache-2.0
"""Tests of the progress messages of long computations without a terminal."""

from fastds.inference import progress


def test_progress_lines_without_a_terminal(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress_bar(True, 10, "downscaling", "tiles") as advance:
        for _ in range(10):
            clock[0] += 20.0
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "downscaling: 2 of 10 tiles in 0:00:40, about 0:02:40 left"
    assert [line.split()[1] for line in lines] == ["2", "4", "6", "8"]


def test_progress_can_be_disabled(capsys):
    with progress.progress_bar(False, 10, "downscaling", "tiles") as advance:
        assert advance is None
    assert capsys.readouterr() == ("", "")
