# SPDX-License-Identifier: Apache-2.0
"""The command `fastds train` and its option parser: named configurations, short option names, one-line errors.

Each task parses its options with read_command_line, so that an option has the same meaning in all tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import logging
import os
import pathlib
import re
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fastds._messages import convert_parser_error, format_error, format_internal_error, show_traceback
from fastds._options import OptionError, format_option, use_option_names
from fastds._outputs import Interrupted
from fastds._suggestions import resolve_name, suggest, suggest_and_list

Config = typing.TypeVar("Config", bound=Any)
_MAX_VALUES = 100_000  # maximum number of values in a configuration
_TASKS_FOLDER = pathlib.Path(__file__).parents[1] / "tasks"
# Task -> description. fastds.tasks.TASK.config has parse_arguments(arguments), .training has train(config).
TASKS = {
    "radar": "FC-ZSM and U-Nets on radar files",
    "fields": "arbitrary-scale networks (INR) on latitude-longitude fields",
    "humidity": "WGAN-GP on gridded fields, humidity",
    "nowcast": "DB-RNN and its family on radar files",
}
_FORMER_TASKS = {
    "gan": "gan is called humidity: fastds train humidity",
    "study": "study is a command of its own: fastds study",
}
# Option names of earlier versions -> present names.
_RENAMED = {
    "generator": "model",
    "generator_options": "model.options",
    "critic_options": "critic.options",
    "options": "model.options",
    "start": "model.start",
    "card": "model.card",
    "optimiser.generator_rate": "learning_rate",
    "optimiser.critic_rate": "critic.learning_rate",
    "optimiser.ema_decay": "ema_decay",
    "loss.quiet_weight": "loss.noise_free_weight",
}
# Options of networks: `--model NAME` is short for `--model.name NAME`.
_NETWORKS = ("model", "critic")
# Fields that are mappings from arguments of Python functions, whose names have hyphens on the command line.
_KEYWORD_FIELDS = ("model.options.", "model.card.", "critic.options.")


def find_configurations(task: str = "*") -> dict[str, pathlib.Path]:
    """Return the shipped configurations of a task as a dict from name to YAML file.

    Args:
        task: key of TASKS, or "*" for all tasks.
    """
    folders = [_TASKS_FOLDER / name / "configs" for name in ([task] if task != "*" else TASKS)]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def format_overview() -> str:
    """Return the text of `fastds train --help`: the tasks and the shipped configurations of each."""
    lines = [
        "usage: fastds train TASK --data.path PATH ...       on files of your own",
        "       fastds train --config NAME --data.path PATH  as the package's weights or a paper's were trained",
        "",
        "Options of a task: fastds train TASK --help. A NAME may be a YAML file, such as --print-config prints.",
        "Every task has: --model NAME, --model.options.KEY VALUE, --model.start WEIGHTS, --data.path PATH, --output,",
        "--seed, --max-steps, --max-minutes, --learning-rate, --ema-decay, --resume, --progress, --threads, --device,",
        "--devices, --report. Without --max-steps, --max-epochs and --max-minutes a training ends after an hour.",
        "",
    ]
    texts = {task: f"{about}; NAME: {', '.join(find_configurations(task))}" for task, about in TASKS.items()}
    further: dict[str, Any] = {"width": 118, "subsequent_indent": " " * 11, "break_on_hyphens": False}
    lines += [textwrap.fill(text, initial_indent=f"  {task:8} ", **further) for task, text in texts.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run `fastds train [TASK] --config NAME|FILE ...` and print the path of the trained weights.

    Args:
        arguments: command line without the program name; None: sys.argv[1:]. TASK is a key of TASKS. Default: the task
            of the shipped configuration, else radar.

    Returns:
        Exit status: 0, 2 after an error, which is printed as one line, or the status of an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["-h"], ["--help"]):
        print(format_overview())
        return 0
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    unknown = None if first is None else format_unknown_task(first)
    if unknown is not None:
        print(unknown, file=sys.stderr)
        return 2
    task = arguments.pop(0) if first else _find_task(arguments)

    from fastds.models.registry import resolve_preset

    options = importlib.import_module(f"fastds.tasks.{task}.config")

    def train() -> pathlib.Path:
        config = options.parse_arguments(arguments)
        if config.model.start is None:  # checked here because importing Lightning takes seconds
            resolve_preset(config.model.name)
        if config.report is not None:
            _check_report(config)
        from fastds.training.baseline_comparison import format_comparison

        training = importlib.import_module(f"fastds.tasks.{task}.training")
        quieten_lightning()
        best = training.train(config)
        message = format_comparison(best)
        if message:
            print(message)
        if config.report is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            # only the first of several processes writes the report
            _write_report(config, best)
        return best

    return run_command(f"fastds train {task}", train, get_option_spellings(options.TrainingConfig))


def format_unknown_task(name: str) -> str | None:
    """Return the error message for an unknown task, or None if the task exists."""
    if name in TASKS:
        return None
    return f"fastds train: {_FORMER_TASKS.get(name) or f'there is no task {name!r}{suggest_and_list(name, TASKS)}'}"


def _check_report(config) -> None:
    from fastds.report import check_report

    check_report(config.report, made=config.output)


def _write_report(config, best: pathlib.Path) -> None:
    from fastds.training.report import write_training_report

    write_training_report(config.report, best, config)


@contextlib.contextmanager
def import_training(task: str) -> Iterator[ModuleType]:
    """Context manager that imports the training module of a task and restores the number of torch threads on exit."""
    import torch

    training, before = importlib.import_module(f"fastds.tasks.{task}.training"), torch.get_num_threads()
    quieten_lightning()
    try:
        yield training
    finally:
        torch.set_num_threads(before)


def quieten_lightning() -> None:
    """Silence Lightning's log messages below the level WARNING, and some of its warnings.

    Call this function after importing Lightning, because the import sets the log level.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # messages about devices, and tips
    warnings.filterwarnings("ignore", ".*is deprecated|(Experiment logs|Checkpoint) directory", module="lightning")
    # Lightning warns that a resumed epoch repeats samples. OffsetSampler continues with the next sample.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended", module="lightning")


def list_option_names(config_class: type) -> set[str]:
    """Return the names of all fields of a configuration.

    A field of a nested configuration has a name such as "data.path".
    """
    kinds = typing.get_type_hints(config_class)
    inside = {name: dataclasses.fields(kinds[name]) for name in _list_sections(config_class)}
    return set(kinds) | {f"{name}.{field.name}" for name, fields in inside.items() for field in fields}


def get_option_spellings(config_class: type) -> dict[str, str]:
    """Return the option of the command line for each field of a configuration: {"data.path": "--data.path", ...}."""
    return {name: format_option(name) for name in list_option_names(config_class) | {"config"}}


def run_command(command: str, run: Callable[[], object], names: Mapping[str, str] | None = None) -> int:
    """Run a training or a study and print the path of its result.

    Errors are printed as one line.

    Args:
        command: command such as "fastds train radar".
        run: function without arguments that returns the path, or None.
        names: field of the configuration -> option, for error messages.

    Returns:
        Exit status: 0, 2 after an error, or the status of an interruption.
    """
    prog, names = " ".join(command.split()[:2]), {} if names is None else names
    with use_option_names(names):
        try:
            result = run()
        except ArgumentError as error:
            known = {*names.values(), "--config", "--help", "--print-config"}
            print(f"{prog}: {convert_parser_error(error, known)} (see {command} --help)", file=sys.stderr)
            return 2
        except (OSError, ImportError, ValueError, FloatingPointError, MemoryError) as error:
            show_traceback()
            print(f"{prog}: {format_error(error)}", file=sys.stderr)
            return 2
        except Exception as error:  # a defect of fastds: reported without a traceback, too
            show_traceback()
            print(f"{prog}: {format_internal_error(error)}", file=sys.stderr)
            return 2
        except Interrupted as interrupt:
            if str(interrupt):  # with several processes, only the first has a message
                print(f"{prog}: {interrupt}", file=sys.stderr)
            return interrupt.status
    if result is not None:
        print(f"wrote {result}")
    return 0


def _find_task(arguments: list[str]) -> str:
    chosen = {value.removeprefix("--config=") for value in arguments}
    return next(
        (task for task in TASKS if any(resolve_name(name, find_configurations(task)) for name in chosen)), "radar"
    )


def read_command_line(
    config_class: type[Config],
    arguments: list[str],
    command: str,
    description: str,
    named: dict[str, pathlib.Path] | None = None,
) -> Config:
    """Parse a command line into a dataclass whose fields are options (--data.path, --max-steps, ...).

    `--config` takes a YAML file or a configuration name. `--model NAME` is short for `--model.name NAME`, and `--critic
    NAME` for `--critic.name NAME`. Words of an option are joined by hyphens; underscores are read, too.

    Args:
        config_class: the dataclass.
        arguments: command line without the command.
        command: command for messages, such as "fastds train radar".
        description: description for the help text.
        named: configuration names and their YAML files; None: the shipped configurations of all tasks.

    Raises:
        ValueError: --config is neither a YAML file nor a configuration name, or an option has been renamed.
        jsonargparse.ArgumentError: unknown or missing argument, or an argument of the wrong type.
    """
    named = find_configurations() if named is None else named
    if "model" in _list_sections(config_class):
        description += " --model NAME is short for --model.name NAME."
    parser = _build_config_parser(config_class, command, description)
    of_task = [name for name, path in named.items() if path.parent.parent.name == command.split()[-1]]
    for action in parser._actions:
        if action.dest == "config":
            action.help = ", or one of: ".join(filter(None, ("a YAML file", ", ".join(of_task or named))))
        if action.help and action.help != argparse.SUPPRESS:
            action.help = format_help(action.help, list_option_names(config_class))
        # The parser finds options by _option_string_actions, whose keys keep underscores; help and errors have these:
        action.option_strings = [
            format_option(option[2:]) if "_" in option else option for option in action.option_strings
        ]
    values = parser.parse_args(_resolve_names(_expand_option_names(arguments, config_class), named))
    return _instantiate(parser, config_class, values)


def format_help(text: str, names: Collection[str]) -> str:
    """Return the help text of an option.

    Names of fields in the text are replaced by options.

    Args:
        text: description of the field.
        names: names of fields. Names of a single word are not replaced.
    """
    found = sorted((name for name in names if "_" in name or "." in name), key=len, reverse=True)
    pattern = "|".join(map(re.escape, found))
    return re.sub(rf"(?<![\w.-])(?:{pattern})(?![\w(])", lambda name: format_option(name[0]), text) if found else text


def build_config(
    config_class: type[Config],
    values: Mapping[str, Any],
    config: pathlib.Path | None = None,
    command: str = "fastds train",
) -> Config:
    """Build the configuration of a training from values of its fields, as a command line with these options would.

    Args:
        config_class: dataclass of the configuration.
        values: field -> value, such as {"max_steps": 2, "data.crop": 24, "data.blocks": {}}.
        config: YAML file with values of further fields.
        command: command with the same options, for messages.

    Raises:
        ValueError: an unknown field, or a value of the wrong type.
    """
    parser = _build_config_parser(config_class, command, "")
    content: dict[str, Any] = {}
    if config is not None:
        content = yaml.safe_load(config.read_text()) or {}
    sections, known = _list_sections(config_class), list_option_names(config_class)
    for section in sections:  # `model: NAME` is short for `model: {name: NAME}`
        if isinstance(content.get(section), str):
            content[section] = {"name": content[section]}
    for name, value in values.items():
        field = _complete_name(name.replace("-", "_"), value, sections)
        if field in _RENAMED:
            raise ValueError(f"{field} is called {_RENAMED[field]}")
        if field not in known and not field.startswith(_KEYWORD_FIELDS):
            raise ValueError(f"there is no option {field}{suggest(field, known)} (see {command} --help)")
        *outer, last = field.split(".", 2)
        place = content
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return _instantiate(parser, config_class, parser.parse_object(content))
    except ArgumentError as error:
        raise convert_parser_error(error, known) from None


def _build_config_parser(config_class: type, command: str, description: str) -> ArgumentParser:
    """Build the parser of a configuration.

    Its options and keys have underscores, as the fields of the dataclass.
    """
    parser = ArgumentParser(prog=command, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:
        # Each section has an option of its own that takes a YAML file. It is hidden from the help.
        if action.option_strings and action.dest in _NETWORKS:
            action.metavar, action.help = "NAME", f"short for --{action.dest}.name NAME"
        elif action.dest in _list_sections(config_class):
            action.help = argparse.SUPPRESS
    return parser


def _instantiate(parser: ArgumentParser, config_class: type[Config], values: Any) -> Config:
    """Create the dataclass from the values of its parser."""
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values = instantiate(values)
    return config_class(**{field.name: getattr(values, field.name) for field in dataclasses.fields(config_class)})


def _list_sections(config_class: type) -> list[str]:
    """Return the names of fields that are dataclasses."""
    kinds = typing.get_type_hints(config_class)
    return [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]


def _complete_name(name: str, value: Any, sections: Collection[str]) -> str:
    """Return "model.name" for "model" with the name of a network as its value; other names are unchanged."""
    mapping = isinstance(value, Mapping) or str(value).lstrip().startswith("{")
    return f"{name}.name" if name in _NETWORKS and name in sections and not mapping else name


def _expand_option_names(arguments: list[str], config_class: type) -> list[str]:
    """Return the command line with the names of fields as options.

    `--model NAME` becomes `--model.name NAME`, unless its value is a mapping. Hyphens between the words of an option
    become underscores.
    """
    sections = _list_sections(config_class)
    names = list_option_names(config_class) | {"print_config"}
    full, waiting = [], list(arguments)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--"):
            if name in _RENAMED:
                raise ValueError(f"{format_option(name)} is called {format_option(_RENAMED[name])}")
            if name in names or name.startswith(_KEYWORD_FIELDS):
                given = value if equals else (waiting[0] if waiting else "")
                option = f"--{_complete_name(name, given, sections)}"
        full.append(option + equals + value)
    return full


def _check_yaml(path: str) -> None:
    """Raise ValueError if a file is not YAML, or if its aliases expand to too many values."""
    try:
        count = _count_values(yaml.compose(pathlib.Path(path).read_text(), Loader=yaml.SafeLoader), {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError("config", f": {path} is no YAML file: {' '.join(str(error).split())[:200]}") from None
    if count > _MAX_VALUES:
        raise OptionError(
            "config", f": {path} stands for more than {_MAX_VALUES} values by its aliases; write out a few"
        )


def _count_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values that a YAML node expands to; infinity for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        inside = getattr(node, "value", ())
        parts = [] if isinstance(inside, str) else [p for x in inside for p in (x if isinstance(x, tuple) else (x,))]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def find_configuration(name: str | os.PathLike, named: Mapping[str, pathlib.Path] | None = None) -> pathlib.Path:
    """Return the YAML file of a configuration.

    Args:
        name: YAML file or name of a configuration.
        named: configuration names and their YAML files; None: the shipped configurations of all tasks.

    Raises:
        ValueError: there is neither such a file nor such a configuration, the file is not YAML, or its aliases expand
            to too many values.
    """
    path, named = pathlib.Path(name), find_configurations() if named is None else named
    if not path.is_file():
        resolved = resolve_name(str(name), named)
        if resolved is None:
            hint = suggest_and_list(str(name), named)
            raise OptionError("config", f": no file {str(name)!r} and no configuration of that name{hint}")
        path = named[resolved]
    _check_yaml(str(path))
    return path


def _resolve_names(arguments: list[str], named: dict[str, pathlib.Path]) -> list[str]:
    resolved, previous = [], None
    for argument in arguments:
        prefix, value = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
        if prefix or previous == "--config":
            value = str(find_configuration(value, named))
        resolved.append(prefix + value)
        previous = argument
    return resolved
