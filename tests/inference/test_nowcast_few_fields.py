# SPDX-License-Identifier: Apache-2.0
"""Tests of the error for too few fields, which names a method that needs fewer."""

import pytest

import fastds
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event

HINT = "; the argument model takes extrapolation, too, which needs 2 every 300 s"


@pytest.fixture(scope="module")
def event():
    return synthetic_event(4, frames=7, shape=(64, 64))[["reflectivity"]]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_frames_error_suggests_extrapolation(event, tmp_path, capsys, count):
    few = event.isel(time=slice(0, count))
    with pytest.raises(ValueError, match=f"5 fields every 300 s are needed .*{HINT}"):
        fastds.nowcast(None, few, steps=1)
    source, out = str(save_dataset(few, tmp_path / "few.nc")), str(tmp_path / "o.nc")
    assert main(["nowcast", source, out, "--steps=1"]) == 2
    assert HINT.replace("the argument model", "--model") in capsys.readouterr().err
    assert main(["nowcast", source, out, "--steps=1", "--model=extrapolation"]) == 0
    assert main(["check", source]) == 0
    assert "; --model takes extrapolation, too, which needs 2 every 300 s\n" in capsys.readouterr().out


def test_few_frames_after_a_gap(event):
    gap = event.isel(time=[0, 1, 2, 4, 5, 6])
    with pytest.raises(ValueError, match=f"that of .* is missing{HINT}"):
        fastds.nowcast(None, gap, steps=1)
    with pytest.raises(ValueError, match="which needs 2 every 600 s"):
        fastds.nowcast(None, gap, steps=1, interval="10min")


def test_few_frames_error_without_suggestion(event):
    gap = event.isel(time=[0, 1, 2, 3, 5])
    for options in ({}, {"start": "2024-06-01T13:00"}, {"model": "extrapolation"}):
        with pytest.raises(ValueError) as refused:
            fastds.nowcast(options.pop("model", None), gap, steps=1, **options)
        assert "takes extrapolation" not in str(refused.value)
