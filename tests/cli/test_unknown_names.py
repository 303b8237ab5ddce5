# SPDX-License-Identifier: Apache-2.0
"""Tests of suggestions for unknown commands, options and model names, without importing torch."""

import subprocess
import sys

import pytest

from fastds import _unknown_names
from fastds._parsers import COMMANDS
from fastds._suggestions import suggest, suggest_and_list
from fastds._unknown_names import find_unknown_name
from fastds.cli import main
from fastds.tasks.fields.methods import WEIGHTLESS_METHODS
from fastds.tasks.nowcast import methods as nowcasting
from fastds.tasks.radar import methods as radar

EARLY = {
    "downscal a b": "there is no command 'downscal'; did you mean downscale?",
    "--versio": "unknown option --versio; did you mean --version?",
    "downscale a b --scal 2": "unknown option --scal; did you mean --scale?",
    "downscale --scal=2 a b": "unknown option --scal; did you mean --scale?",
    "downscale a b -scale 2": "unknown option -scale; did you mean --scale?",
    "downscale a b --time_factr 2": "unknown option --time-factr; did you mean --time-factor?",
    "nowcast a b --mem 3": "unknown option --mem; did you mean --members?",
    "evaluate a b --zzz": "fastds evaluate: unknown option --zzz (see fastds evaluate --help)",
    "check a --missin 3": "did you mean --missing?",
    "convert a b --licence X": "did you mean --license?",
    "demo --sed 3": "did you mean --seed?",
    "finetune m --dat x": "did you mean --data?",
    "export fczsm-small o.onnx --frame 3": "did you mean --frames?",
    "models --preset": "did you mean --presets?",
    "downscale a b --model fczsm-smal": "did you mean fczsm-small?",
    "downscale a b --model=bicubc": "did you mean bicubic?",
    "nowcast a b --model extrapolatio": "did you mean extrapolation?",
    "nowcast a b --model oracle": "methods without weights: persistence, blurred-persistence, extrapolation, pysteps",
    "query a --points p --output o --model inr-smal": "did you mean inr-small?",
    "demo --model fczsm-smal": "did you mean fczsm-small?",
    "finetune fczsm-smal --data x": "MODEL 'fczsm-smal' is neither a file nor",
    "export fczsm-smal x.onnx": "did you mean fczsm-small?",
    "train radr": "there is no task 'radr'; did you mean radar? There are: radar, fields",
    "train gan": "gan is called humidity",
    "study fczs": "there is no study 'fczs'; did you mean fczsm?",
}  # fmt: skip
# These are reported by the parsers of configurations, which import torch.
LATER = {
    "models fczsm-smal": "none of the 85 presets; did you mean fczsm-small?",
    "train radar --max_min=3 --data.path=x": "unknown option --max-min; did you mean --max-minutes?",
    "train radar --data.pat x": "unknown option --data.pat; did you mean --data.path?",
    "train --confi fczsm-small": "unknown option --confi; did you mean --config?",
    "train --config fczsm-smal": "no configuration of that name; did you mean fczsm-small? There are: ",
    "train radar --model fczsm-smal --data.path=.": "there is no preset 'fczsm-smal'; did you mean fczsm-small",
    "study radar --membr=4": "unknown option --membr; did you mean --members?",
    "downscale a b --coarsened lineer_z": "did you mean linear_z?",
}


@pytest.mark.parametrize("command", EARLY | LATER)
def test_nearest_name_is_suggested(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    stderr = capsys.readouterr().err
    assert (EARLY | LATER)[command] in stderr and stderr.startswith("fastds") and stderr.count("\n") == 1
    assert (find_unknown_name(command.split()) is None) == (command in LATER)


@pytest.mark.parametrize(
    "command",
    [
        "downscale a b --z_r 200 1.6 --missing -32 --model lanczos",
        "downscale a b --scale=2 -- --odd-name",
        "nowcast a b --missing -.5 --model pysteps",
        "nowcast a b --model tests",
        "downscale --scal --help",
        "models inr-small",
        "info --all",
        "train --config fczsm-small",
        "train",
        "study radar --anything",
        "",
    ],
)
def test_known_words_are_left_to_the_parsers(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").touch()
    assert find_unknown_name(command.split()) is None


def test_suggested_methods_exist():
    assert set(_unknown_names.METHODS["downscale"]) == {*radar.BASELINES, *WEIGHTLESS_METHODS}
    assert set(_unknown_names.METHODS["nowcast"]) == set(nowcasting.BASELINES)


def test_every_option_of_every_command_is_known():
    for name in COMMANDS.keys() - {"train", "study", "models", "info"}:
        for action in _unknown_names.build_command_parser(name)._actions:
            for option in action.option_strings:
                assert find_unknown_name([name, option]) is None, (name, option)


def test_nothing_heavy_is_imported_for_it():
    """Importing torch takes a second or more."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('fastds', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'xarray' in sys.modules)"
    )
    for words in ("downscal", "downscale --scal 2", "nowcast a b --model nowcast-smal", "train radr", "study fczs"):
        # As `python -m fastds WORDS`, in a program that sees what is imported at its end.
        given = words.split()
        program = f"import sys; sys.argv = {['-m', *given]}; sys.orig_argv = {['python', '-m', 'fastds', *given]}"
        done = subprocess.run([sys.executable, "-c", f"{program}\n{code}"], capture_output=True, text=True, timeout=120)
        assert done.stdout == "2 False False\n", done
        assert done.stderr.startswith("fastds")


def test_other_programs_are_unaffected():
    program = "import sys; sys.argv[:] = ['fastds', 'downscal']; import fastds; print('imported')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "imported\n", done


def test_did_you_mean():
    assert suggest("--mem", ["--members", "--seed", "--member-of"]) == "; did you mean --members?"
    assert suggest("zzz", ["--members"]) == ""
    assert suggest("radr", ["radar", "road"], most=2) == "; did you mean radar or road?"
    assert suggest_and_list("zzz", ["a", "b"]) == "; there are: a, b"
