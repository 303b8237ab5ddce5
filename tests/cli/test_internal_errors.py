# SPDX-License-Identifier: Apache-2.0
"""Tests of messages for internal errors, and of messages that name the command-line options."""

import pickle

import pytest

from fastds._options import OptionError, spell_argument, spell_value, use_option_names
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.tasks.api import UnknownOptionError
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
    stderr = capsys.readouterr().err
    kind, words = type(error).__name__, " ".join(str(error).split())
    assert stderr.startswith(
        f"fastds nowcast: internal error while working on {radar} ({kind}: {words}); this is a bug"
    )
    assert stderr.endswith("FASTDS_DEBUG=1 shows the traceback\n") and stderr.count("\n") == 1


@pytest.mark.parametrize("error", [UNEXPECTED[0], ValueError("a user's")], ids=["bug", "user"])
def test_debug_variable_shows_the_traceback(radar, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("fastds.tasks.nowcast.run.Options", _raising(error))
    monkeypatch.setenv("FASTDS_DEBUG", "1")
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback (most recent call last):") and "\nfastds nowcast: " in stderr


def test_internal_error_while_reading(radar, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastds.data.formats.opening.list_files", _raising(TypeError("x")))
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    assert f"internal error while reading {radar} (TypeError: x)" in capsys.readouterr().err


def test_check_continues_after_an_internal_error(radar, monkeypatch, capsys):
    monkeypatch.setattr("fastds.tasks.radar.run.plan", _raising(TypeError("x")))
    assert main(["check", radar]) == 0
    printed = capsys.readouterr().out
    assert "  cannot     downscale: internal error (TypeError: x); this is a bug in fastds" in printed
    assert "  can        convert: " in printed
    monkeypatch.setattr("fastds.tasks.check._list_facts", _raising(IndexError("x")))
    assert main(["check", radar]) == 2
    assert f"  cannot be read: internal error while working on {radar} (IndexError: x)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "module"), [("train radar", "tasks.radar.config"), ("study radar", "studies.radar")]
)
def test_internal_errors_of_trainings_and_studies(command, module, monkeypatch, capsys):
    monkeypatch.setattr(f"fastds.{module}.parse_arguments", _raising(TypeError("x")))
    assert main(command.split()) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"fastds {command.split()[0]}: internal error (TypeError: x); this is a bug in fastds")


def test_out_of_memory_is_not_reported_as_bug(radar, tmp_path, monkeypatch, capsys):
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
    monkeypatch.setattr("fastds.tasks.nowcast.run.Options", _raising(error))
    assert main(["nowcast", radar, str(tmp_path / "o.nc"), "--model", "persistence"]) == 2
    assert capsys.readouterr().err.startswith("fastds nowcast: there is not enough memory: [enforce fail")


NAMES = {name: f"--{name}" for name in ("outside", "scale", "grid", "members", "data.level")} | {"model": "MODEL"}


@pytest.mark.parametrize(
    ("make", "python", "command"),
    [
        (lambda: OptionError("scale", "must be 2, got 3"), "scale must be 2, got 3", "--scale must be 2, got 3"),
        (lambda: OptionError("grid", ": no such file"), "grid: no such file", "--grid: no such file"),
        (lambda: OptionError("x", "must be 2"), "x must be 2", "x must be 2"),
        (lambda: OptionError("level", "is missing"), "level is missing", "--data.level is missing"),
        (lambda: OptionError("name_or_path", "'x'"), "name_or_path 'x'", "MODEL 'x'"),
        (lambda: UnknownOptionError("scale", "query", {"grid"}), "scale is no argument for query, which takes the "
         "arguments grid", "--scale is no option for query, which takes --grid"),
        (lambda: spell_argument("members"), "the argument members", "--members"),
        (lambda: spell_argument("scale", "grid"), "the arguments scale and grid", "--scale and --grid"),
        (lambda: spell_argument("scale", "grid", "model", conjunction="or"), "the arguments scale, grid or model",
         "--scale, --grid or MODEL"),
        (lambda: spell_argument("bounds"), "the argument bounds", "the argument bounds"),
        (lambda: spell_value("outside", "nan", "clamp"), "outside='nan' or 'clamp'", "--outside nan or clamp"),
        (lambda: spell_value("members", True), "members=True", "--members"),
    ],
)  # fmt: skip
def test_messages_name_arguments_in_python_and_options_in_commands(make, python, command):
    assert str(make()) == python
    error = pickle.loads(pickle.dumps(make()))
    with use_option_names(NAMES):
        assert str(make()) == command
        if isinstance(error, Exception):
            assert str(error) == command and isinstance(error, ValueError)
    assert str(make()) == python


def test_stations_outside_error_names_the_option(tmp_path, capsys):
    save_dataset(gridded(TEMPERATURE), tmp_path / "t.nc")
    (tmp_path / "p.csv").write_text("lat,lon\n-80,10\n")
    command = ["query", f"{tmp_path}/t.nc", "--points", f"{tmp_path}/p.csv", "--output", f"{tmp_path}/o.csv"]
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert "--outside nan or clamp accepts them" in stderr and "'nan'" not in stderr
