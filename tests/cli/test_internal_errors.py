# SPDX-License-Identifier: Apache-2.0
"""Errors that no user made: one sentence that asks for a report, and the words of a command line in all others."""

import pytest

from fastds import _messages
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.training.command import insert_option_names as of_training
from tests.support.small_models import TEMPERATURE, gridded

UNEXPECTED = [
    KeyError("where"), TypeError("unsupported operand"), IndexError("list index out of range"), OverflowError("inf"),
    AttributeError("no attribute 'x'"), RuntimeError("two\nlines"),
]  # fmt: skip


@pytest.fixture
def radar(tmp_path):
    return str(save_dataset(synthetic_event(5, 4, (64, 64))[["reflectivity", "crs"]], tmp_path / "in.nc"))


def _raising(error):
    def fails(*args, **options):
        raise error

    return fails


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_commands_do_not_print_tracebacks(radar, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("fastds.tasks.nowcast.run.Options", _raising(error))
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    said = capsys.readouterr().err
    kind, words = type(error).__name__, " ".join(str(error).split())
    assert said.startswith(f"fastds nowcast: internal error while working on {radar} ({kind}: {words}); this is a bug")
    assert said.endswith("FASTDS_DEBUG=1 shows the traceback\n") and said.count("\n") == 1


@pytest.mark.parametrize("error", [UNEXPECTED[0], ValueError("a user's")], ids=["bug", "user"])
def test_debug_variable_shows_the_traceback(radar, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("fastds.tasks.nowcast.run.Options", _raising(error))
    monkeypatch.setenv("FASTDS_DEBUG", "1")
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):") and "\nfastds nowcast: " in said


def test_internal_error_while_reading(radar, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastds.data.formats.opening.list_files", _raising(TypeError("x")))
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    assert f"internal error while reading {radar} (TypeError: x)" in capsys.readouterr().err


def test_check_continues_after_an_internal_error(radar, monkeypatch, capsys):
    monkeypatch.setattr("fastds.tasks.radar.run.plan", _raising(TypeError("x")))
    assert main(["check", radar]) == 0
    said = capsys.readouterr().out
    assert "  cannot     downscale: internal error (TypeError: x); this is a bug in fastds" in said
    assert "  can        convert: " in said
    monkeypatch.setattr("fastds.tasks.check._list_facts", _raising(IndexError("x")))
    assert main(["check", radar]) == 2
    assert f"  cannot be read: internal error while working on {radar} (IndexError: x)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "module"), [("train radar", "tasks.radar.config"), ("study radar", "studies.radar")]
)
def test_internal_errors_of_trainings_and_studies(command, module, monkeypatch, capsys):
    monkeypatch.setattr(f"fastds.{module}.parse_arguments", _raising(TypeError("x")))
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastds {command.split()[0]}: internal error (TypeError: x); this is a bug in fastds")


def test_out_of_memory_is_not_reported_as_bug(radar, tmp_path, monkeypatch, capsys):
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
    monkeypatch.setattr("fastds.tasks.nowcast.run.Options", _raising(error))
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    assert capsys.readouterr().err.startswith("fastds nowcast: there is not enough memory: [enforce fail")


NAMES = {"outside", "var", "time_factor", "scale", "grid", "static", "members", "smooth", "model"}


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("outside='nan' or 'clamp' accepts them", "--outside nan or clamp accepts them"),
        ("time_factor must be 2 or 4", "--time-factor must be 2 or 4"),
        ("leave out the argument static", "leave out --static"),
        ("give exactly one of the arguments scale, grid and var", "give exactly one of --scale, --grid and --var"),
        ("with the argument scale 2 it fits; smooth=True helps", "with --scale 2 it fits; --smooth helps"),
        ("x is no argument for query, which takes the arguments var", "x is no option for query, which takes --var"),
        ("dropping '_FillValue' np.float64(nan)", "dropping '_FillValue' nan"),
        ("name_or_path 'x' is neither", "--model 'x' is neither"),
        # Names of files and of what is no option stay.
        ("/data/scale=2/var='x'.nc is damaged", "/data/scale=2/var='x'.nc is damaged"),
        ("scale=2.nc is damaged", "scale=2.nc is damaged"),
        ("the argument bounds is wrong, static_channels=0", "the argument bounds is wrong, static_channels=0"),
    ],
)
def test_errors_name_the_command_options(python, command):
    assert _messages.replace_arguments_by_options(python, NAMES) == command


def test_training_errors_name_the_training_options():
    assert of_training("name one with the argument level", {"data.level"}) == "name one with --data.level"
    assert of_training("name one with the argument model", {"model"}) == "name one with --model"
    assert of_training("name one with the argument level", {"model"}) == "name one with the argument level"


def test_stations_outside_error_names_the_option(tmp_path, capsys):
    save_dataset(gridded(TEMPERATURE), tmp_path / "t.nc")
    (tmp_path / "p.csv").write_text("lat,lon\n-80,10\n")
    command = ["query", f"{tmp_path}/t.nc", "--points", f"{tmp_path}/p.csv", "--output", f"{tmp_path}/o.csv"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--outside nan or clamp accepts them" in said and "'nan'" not in said
