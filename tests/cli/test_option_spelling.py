# SPDX-License-Identifier: Apache-2.0
"""Tests that training options have the same names in all tasks."""

import contextlib
import dataclasses
import importlib
import pathlib
import re

import pytest

from fastds._options import format_option
from fastds._parsers import COMMANDS
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.studies.command import STUDIES
from fastds.studies.command import find_configurations as studies
from fastds.training.command import TASKS, build_config, find_configurations
from tests.support import forked

SHARED = {
    "output": "folder", "seed": 3, "max_steps": 7, "max_minutes": 2.5, "learning_rate": 0.25, "ema_decay": 0.5,
    "resume": False, "progress": False, "threads": 2, "devices": 1,
}  # fmt: skip


def parse(task, *arguments):
    return importlib.import_module(f"fastds.tasks.{task}.config").parse_arguments(["--data.path=x", *arguments])


@pytest.mark.parametrize("task", TASKS)
def test_every_training_has_the_shared_options(task):
    config = parse(task, *(f"--{name}={value}".lower() for name, value in SHARED.items()))
    assert {name: getattr(config, name) for name in SHARED} == SHARED and config.data.path == "x"


@pytest.mark.parametrize("task", TASKS)
def test_model_options_are_spelled_alike(task):
    options = ["--model.options.width=8", "--model.options.kind=plain", "--model.options.parts={blocks: 2}"]
    options += ["--model.options.wide=true", "--model.start=w.safetensors", "--model.card.licence=CC0"]
    for name in (["--model", "liif"], ["--model=liif"], ["--model.name=liif"], ["--model.name", "liif"]):
        model = parse(task, *name, *options).model
        assert (model.name, model.start, model.card) == ("liif", "w.safetensors", {"licence": "CC0"}), name
        assert model.options == {"width": 8, "kind": "plain", "parts": {"blocks": 2}, "wide": True}
    assert parse(task, "--model={name: lte, options: {width: 4}}").model.options == {"width": 4}


@pytest.mark.parametrize("task", TASKS)
def test_hyphens_and_underscores_are_alike(task):
    config = parse(task, "--max-minutes=2", "--learning-rate", "0.5", "--data.batch-size=4")
    assert (config.max_minutes, config.learning_rate, config.data.batch_size) == (2.0, 0.5, 4)


def test_hyphens_and_underscores_in_other_commands(capsys):
    for option in ("--time-factor=3", "--time-factor=3"):
        assert main(["downscale", "none.nc", "o.nc", option, "--z-r", "1", "2"]) == 2
        assert "none.nc" in capsys.readouterr().err


def test_shorthand_preserves_configured_options():
    model = parse("humidity", "--config", "wgan-gp-small-x8", "--model", "wgan-gp").model
    assert model.name == "wgan-gp" and model.options == {"scale": 8, "noise_std": 0.5} and model.card["name"]


def test_critic_options_are_spelled_like_model_options():
    config = parse("humidity", "--critic=srgan", "--critic.options.width=16", "--critic.learning-rate=1e-4")
    assert dataclasses.asdict(config.critic) == {"name": "srgan", "options": {"width": 16}, "learning_rate": 1e-4}
    assert parse("humidity", "--critic", "srgan").critic.name == "srgan"
    assert config.max_steps is None and config.optimiser.epochs is None


def test_every_new_spelling_works():
    config = parse("humidity", "--learning-rate=1", "--critic.learning-rate=2", "--ema-decay=0.5", "--model=srcnn")
    assert (config.learning_rate, config.critic.learning_rate, config.ema_decay) == (1, 2, 0.5)
    assert parse("humidity", "--loss.noise-free-weight=3").loss.noise_free_weight == 3
    model = parse("humidity", "--model.options={scale: 2}", "--model.card={licence: 'CC: 0', seeds: [1]}").model
    assert model.options == {"scale": 2} and model.card == {"licence": "CC: 0", "seeds": [1]}
    config = parse(
        "nowcast", "--model=db-convgru", "--model.options={hidden: 4}", "--model.start=w", "--stage=deblurrer"
    )
    assert config.model.name == "db-convgru" and config.model.options == {"hidden": 4} and config.model.start == "w"


@pytest.mark.parametrize("task", TASKS)
def test_bounds_of_every_training(task):
    for wrong, message in (
        ("--max-steps=0", "max_steps and max_minutes must be positive"),
        ("--max-minutes=0", "max_steps and max_minutes must be positive"),
        ("--ema-decay=1", "ema_decay must lie in"),
        ("--output=run/w.safetensors", "output must be a folder, which gets best.safetensors, got 'run/w.safetensors'"),
        ("--devices=7", "devices must be positive and divide data.batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(task, wrong)
    with pytest.raises(ValueError, match="max_minutes is for one process"):
        parse(task, "--devices=2", "--max-minutes=1")


def test_shipped_configurations_keep_their_values():
    small, large = (parse("humidity", "--config", name) for name in ("wgan-gp-small", "wgan-gp-small-x8"))
    assert (small.learning_rate, small.critic.learning_rate, small.ema_decay) == (2e-3, 1e-3, 0.995)
    assert (large.learning_rate, large.critic.learning_rate, large.ema_decay) == (1e-3, 1e-3, 0.995)
    assert (small.optimiser.epochs, small.max_minutes, small.max_steps) == (200, 22, None)
    assert (large.optimiser.epochs, large.max_minutes, large.loss.noise_free_weight) == (26, 75, 1.0)
    assert small.model.options == {"scale": 2} and small.critic.options["down_blocks"] == 2
    inr, nowcast = parse("fields", "--config", "inr-small"), parse("nowcast", "--config", "nowcast-small")
    assert (inr.learning_rate, inr.ema_decay, inr.max_steps) == (1.5e-3, 0.995, 8000)
    assert len(inr.model.card["output_variables"]) == 4 and nowcast.model.card["cadence_s"] == [300.0, 900.0]
    assert (nowcast.learning_rate, nowcast.warmup_steps, nowcast.weight_decay) == (2e-3, 40, 0.3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "gan"], "fastds train: gan is called humidity: fastds train humidity"),
        (["train", "study"], "study is a command of its own: fastds study"),
        (["train", "rain"], "there is no task 'rain'; there are: radar, fields, humidity, nowcast"),
        (["train", "humidity", "--data.path=x", "--generator=wgan-gp"], "fastds train: --generator is called --model"),
        (
            ["train", "humidity", "--optimiser.critic-rate", "1"],
            "--optimiser.critic-rate is called --critic.learning-rate",
        ),
        (["train", "nowcast", "--start=w.safetensors"], "--start is called --model.start"),
        (["train", "fields", "--options={}"], "--options is called --model.options"),
        (["train", "--config", "fields-500hPa"], "no configuration of that name; there are: "),
        (["study", "rain"], "fastds study: there is no study 'rain'; there are: radar, nowcast, humidity"),
        (["study"], "there is no study ''"),
        (["study", "radar", "--data.path=none", "--model=none"], "'none'"),
        (["study", "fields-500hPa", "--data.path=none.nc"], "--data.path: no such file: none.nc"),
        (["study", "humidity", "--data.path=.", "--training=none"], "no configuration of that name"),
        (["study", "nowcast", "--data.path=x", "--starts=few"], "--starts must be a whole number or null, got 'few'"),
        (["train", "radar", "--data.path=x", "--max-steps=x"], "--max-steps must be a whole number or null, got 'x'"),
        (["train", "radar", "--data.path=x", "--resume=maybe"], "--resume must be true or false, got 'maybe'"),
        (["train", "radar"], "--data.path is missing (see fastds train radar --help)"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_help_of_studies_and_trainings(capsys):
    assert main(["study", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in STUDIES) and set(studies()) < set(STUDIES)
    assert main(["train", "--help"]) == 0
    assert "--learning-rate" in capsys.readouterr().out
    for task in TASKS:
        with pytest.raises(SystemExit):
            main(["train", task, "--help"])
        text = capsys.readouterr().out
        assert all(format_option(name) in text for name in (*SHARED, "model.name", "model.start", "data.path")), task
        unbroken = "".join(text.split())  # lines may end at a hyphen
        assert all(name in unbroken for name in find_configurations(task)), task


def test_options_of_the_command_are_named_as_such(tmp_path, capsys):
    save_dataset(synthetic_event(5, 3, (64, 64)), tmp_path / "in.nc")
    weights = ["--model", "fczsm-small"]
    for arguments, sentence in (
        (["downscale", *weights, "--threads", "0"], "fastds downscale: --threads must be a whole number"),
        (["downscale", "--model", "trilinear", "--level", "2"], "--seed, --smooth, --start, --static"),
        (["downscale", "--scale", "2", "--tile", "32"], "--tile is no option for fields, which takes --"),
        (["nowcast", "--steps", "0"], "fastds nowcast: --steps must be a whole number"),
        (["nowcast", "--steps", "2", "--lead", "1h"], "give one of --steps and --lead"),
    ):
        assert main([arguments[0], f"{tmp_path}/in.nc", f"{tmp_path}/o.nc", *arguments[1:]]) == 2
        assert sentence in capsys.readouterr().err


def test_training_without_lightning_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['lightning'] = None; from fastds.cli import main\n"
        "for task in sys.argv[2:]: print(main(['train', task, '--data.path=x', '--output=' + sys.argv[1]]))"
    )
    done = forked.run(code, tmp_path, *TASKS, imports=forked.TORCH)
    lines = done.stderr.splitlines()
    assert done.stdout.split() == len(TASKS) * ["2"] and len(lines) == len(TASKS), done.stderr
    assert all(line.startswith("fastds train: training needs Lightning") and "'.[train]'" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-steps=0"], "--max-steps and --max-minutes must be positive"),
        (["--data.path=none.nc"], "--data.path: no such file"),
        (["--data.path=none.nc", "--data.batch-size=0"], "--data.batch-size must be at least 1"),
        (["--data.path=none.nc", "--devices=3"], "--devices must be positive and divide --data.batch-size="),
        (["--data.path=none.nc", "--threads=0"], "--threads must be a whole number"),
    ],
)
def test_options_of_a_training_are_named_as_such(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    command = ["train", "fields", "--data.variables=[t]", "--data.path=x", *arguments]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"fastds train: {sentence}")


def test_configuration_of_values_equals_that_of_the_command_line():
    """fastds.fit and finetune build their configuration without a command line."""
    for task in TASKS:
        module = importlib.import_module(f"fastds.tasks.{task}.config")
        values = {"data.path": "x", "max_minutes": 3, "learning_rate": 1e-5, "model": "net", "model.options.a_b": 3}
        words = ["--data.path=x", "--max-minutes=3", "--learning_rate=1e-5", "--model=net", "--model.options.a-b=3"]
        expected = module.parse_arguments(words)
        assert repr(build_config(module.TrainingConfig, values)) == repr(expected)
        for name, file in find_configurations(task).items():
            expected = module.parse_arguments(["--config", name, *words, "--data.batch-size=8"])
            values |= {"data.batch_size": 8}
            assert repr(build_config(module.TrainingConfig, values, file)) == repr(expected), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.path": "x", "max_steps": "many"}, "^max_steps must be a whole number or null, got 'many'"),
        ({"data.path": "x", "data.crap": 3}, "there is no option data.crap; did you mean data.crop"),
        ({"max_steps": 3}, "^data.path is missing"),
        ({"data.path": "x", "data.minimum_echo": 3.0}, r"^data.minimum_echo must lie in \[0, 1\], got 3"),
        ({"data.path": "x", "card": {}}, "card is called model.card"),
    ],
)
def test_errors_of_values_have_names_of_python(values, message):
    with pytest.raises(ValueError, match=message):
        build_config(importlib.import_module("fastds.tasks.radar.config").TrainingConfig, values)


# An option with an underscore; file names and Python's --x in code are no options.
UNDERSCORE = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*_[\w.-]*")


def test_help_has_no_option_with_an_underscore(capsys):
    commands = (
        [["train", task] for task in TASKS] + [["study", name] for name in STUDIES] + [[name] for name in COMMANDS]
    )
    for words in [[], *commands]:
        with contextlib.suppress(SystemExit):
            main([*words, "--help"])
        text = capsys.readouterr().out
        assert "--" in text or words in (["models"], ["info"], ["study"]), words
        assert not UNDERSCORE.findall(text), words


def test_docs_have_no_option_with_an_underscore():
    root = pathlib.Path(__file__).parents[2]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    pages += [*(root / "fastds").rglob("*.yaml"), *(root / "fastds").rglob("*.md"), *(root / "fastds").rglob("*.py")]
    found = {page.relative_to(root): UNDERSCORE.findall(page.read_text()) for page in pages}
    assert not {page: options for page, options in found.items() if options}
