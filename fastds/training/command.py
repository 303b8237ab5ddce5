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
from collections.abc import Callable, Collection, Iterator
from types import ModuleType

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fastds._nearest import did_you_mean, spelled, there_are
from fastds._outputs import Interrupted
from fastds._sentences import internal_error, show_traceback

Config = typing.TypeVar("Config")
# maximum number of values in a configuration; maximum length of an error message in characters
_MAX_VALUES, _MAX_MESSAGE = 100_000, 1000
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}
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
    "--generator": "--model",
    "--generator_options": "--model.options",
    "--critic_options": "--critic.options",
    "--options": "--model.options",
    "--start": "--model.start",
    "--card": "--model.card",
    "--optimiser.generator_rate": "--learning_rate",
    "--optimiser.critic_rate": "--critic.learning_rate",
    "--optimiser.ema_decay": "--ema_decay",
    "--loss.quiet_weight": "--loss.noise_free_weight",
}
# Options of networks: `--model NAME` is short for `--model.name NAME`.
_NETWORKS = ("--model", "--critic")


def find_configurations(task: str = "*") -> dict[str, pathlib.Path]:
    """Return the shipped configurations of a task ("*": of all tasks) as a dict from name to YAML file."""
    folders = [_TASKS_FOLDER / name / "configs" for name in ([task] if task != "*" else TASKS)]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def format_overview() -> str:
    """Return the text of `fastds train --help`: the tasks and the shipped configurations of each."""
    lines = [
        "usage: fastds train TASK --data.path PATH ...       on files of your own",
        "       fastds train --config NAME --data.path PATH  as the package's weights or a paper's were trained",
        "",
        "Options of a task: fastds train TASK --help. A NAME may be a YAML file, such as --print_config prints.",
        "Every task has: --model NAME, --model.options.KEY VALUE, --model.start WEIGHTS, --data.path PATH, --output,",
        "--seed, --max_steps, --max_minutes, --learning_rate, --ema_decay, --resume, --progress, --threads, --device,",
        "--devices, --report. Without --max_steps and --max_minutes a training ends after an hour.",
        "",
    ]
    texts = {task: f"{about}; NAME: {', '.join(find_configurations(task))}" for task, about in TASKS.items()}
    further = {"width": 118, "subsequent_indent": " " * 11, "break_on_hyphens": False}
    lines += [textwrap.fill(text, initial_indent=f"  {task:8} ", **further) for task, text in texts.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run `fastds train [TASK] --config NAME|FILE ...` and print the path of the trained weights.

    Args:
        arguments: command line without the program name; None: sys.argv[1:]. TASK is a key of TASKS. Default: the task
            of the shipped configuration, else radar.

    Returns:
        Exit status; 2 for an error of the user, which is printed as one line.
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

    from fastds.models.registry import check_preset

    options = importlib.import_module(f"fastds.tasks.{task}.config")

    def train() -> pathlib.Path:
        config = options.parse_arguments(arguments)
        if config.model.start is None:  # checked here because importing Lightning takes seconds
            check_preset(config.model.name)
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

    return run_command(f"fastds train {task}", train, list_option_names(options.TrainingConfig))


def format_unknown_task(name: str) -> str | None:
    """Return the error message for an unknown task, or None if the task exists."""
    if name in TASKS:
        return None
    return f"fastds train: {_FORMER_TASKS.get(name) or f'there is no task {name!r}{there_are(name, TASKS)}'}"


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
    """Silence Lightning's messages. Call this after importing Lightning, because the import sets the log level."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # messages about devices, and tips
    warnings.filterwarnings("ignore", ".*is deprecated|(Experiment logs|Checkpoint) directory", module="lightning")
    # Lightning warns that a resumed epoch repeats samples. OffsetSampler continues with the next sample.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended", module="lightning")


def list_option_names(config_class: type) -> set[str]:
    """Return the names of all fields of a configuration; fields of nested configurations as "data.path"."""
    kinds = typing.get_type_hints(config_class)
    inside = {name: dataclasses.fields(kinds[name]) for name in _list_sections(config_class)}
    return set(kinds) | {f"{name}.{field.name}" for name, fields in inside.items() for field in fields}


def insert_option_names(message: str, names: set[str]) -> str:
    """Rewrite field names of a configuration in a message as command-line options.

    "data.crop must be ..." becomes "--data.crop must be ...". A single word is replaced only if it is unambiguous:
    before "=", or at the beginning of the message before " must ".

    Args:
        message: message of an exception.
        names: field names, see list_option_names.
    """

    def argument(found: re.Match) -> str:
        own = next((name for name in (found[1], f"data.{found[1]}") if name in names), None)
        return f"--{own}" if own else found[0]

    # `fastds train` has no option for units. The text is that of plausible.MEND_FIRST, which is not imported because
    # its module loads xarray.
    message = message.replace("tell the right ones with the argument units", "mend the file first")

    message = re.sub(r"\bthe argument ([a-z_]+)", argument, message).replace("name_or_path '", "model '")

    def option(found: re.Match) -> str:
        name, rest = found[0], message[found.end() :]
        sure = "." in name or "_" in name or rest.startswith("=")
        sure |= not found.start() and rest.startswith((" must ", ": ", " deblurrer "))
        return f"--{name}" if name in names and sure else name

    return re.sub(r"(?<![\w./'\"-])[a-z]+(?:[._][a-z_]+)*", option, message)


def format_parser_error(error: ArgumentError, command: str, between: str = "_", options: Collection[str] = ()) -> str:
    """Format an error of jsonargparse without parser keys and Python class names, and refer to the help.

    Args:
        error: error of the parser.
        command: command whose help is mentioned, such as "fastds train radar".
        between: character between the words of an option: "_" or "-".
        options: known options, for suggestions.
    """
    message = " ".join(str(error).split())
    key, kinds = re.match(r'Parser key "([\w.]+)": ', message), re.findall(r"Expected an? <class '(\w+)'>", message)
    given = re.search(r"(?:Got|Given) value: (.*?)(?: Given value type.*)?$", message)
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    unknown = re.match(r"unrecognized arguments: (--?[A-Za-z]\S*)", message)
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    if key and given and kinds and set(kinds) <= set(_TYPE_NAMES):
        expected = " or ".join(dict.fromkeys(_TYPE_NAMES[kind] for kind in kinds))
        message = f"--{key[1].replace('_', between)} must be {expected}, got {given[1]!r}"
    elif key:
        message = f"--{key[1]}: {message[key.end() :]}"
    elif missing:
        prefix = command.split()[-1] + "."  # prefix of positional arguments
        names = missing[1].split(", ")
        names = [n.removeprefix(prefix).upper() if n.startswith(prefix) else f"--{n}" for n in names]
        message = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    elif unknown:
        option = unknown[1].partition("=")[0]
        message = f"unknown option {option}{did_you_mean(option, options)}"
    elif choice:
        message += did_you_mean(choice[1], re.findall(r"'([^']+)'", choice[2]))
    message = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + " ..."
    return f"{message} (see {command} --help)"


def run_command(command: str, run: Callable[[], object], names: set[str] = frozenset()) -> int:
    """Run a training or a study and print the path of its result. Errors of the user are printed as one line.

    Args:
        command: command such as "fastds train radar".
        run: function without arguments that returns the path, or None.
        names: field names that are rewritten as options in error messages.

    Returns:
        Exit status: 0, 2 after an error, or the status of an interruption.
    """
    prog = " ".join(command.split()[:2])
    try:
        result = run()
    except ArgumentError as error:
        options = {f"--{name}" for name in names} | {"--config", "--help", "--print_config"}
        print(f"{prog}: {format_parser_error(error, command, options=options)}", file=sys.stderr)
        return 2
    except (OSError, ImportError, ValueError, FloatingPointError, MemoryError) as error:
        show_traceback()
        print(f"{prog}: {insert_option_names(' '.join(str(error).split()), names)}", file=sys.stderr)
        return 2
    except Exception as error:  # a defect of fastds: reported without a traceback, too
        show_traceback()
        print(f"{prog}: {internal_error(error)}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        if str(interrupt):  # with several processes, only the first has a message
            print(f"{prog}: {insert_option_names(str(interrupt), names)}", file=sys.stderr)
        return interrupt.status
    if result is not None:
        print(f"wrote {result}")
    return 0


def _find_task(arguments: list[str]) -> str:
    chosen = {value.removeprefix("--config=") for value in arguments}
    return next((task for task in TASKS if any(spelled(name, find_configurations(task)) for name in chosen)), "radar")


def read_command_line(
    config_class: type[Config],
    arguments: list[str],
    command: str,
    description: str,
    named: dict[str, pathlib.Path] | None = None,
) -> Config:
    """Parse a command line into a dataclass whose fields are options (--data.path, --max_steps, ...).

    `--config` takes a YAML file or a configuration name. `--model NAME` is short for `--model.name NAME`, and `--critic
    NAME` for `--critic.name NAME`.

    Args:
        config_class: the dataclass.
        arguments: command line without the command.
        command: command for messages, such as "fastds train radar".
        description: description for the help text.
        named: configuration names and their YAML files; None: the shipped configurations of all tasks.

    Raises:
        ValueError: --config is neither a file nor a configuration name.
        jsonargparse.ArgumentError: unknown or missing argument, or an argument of the wrong type.
    """
    named = find_configurations() if named is None else named
    if "model" in _list_sections(config_class):
        description += " --model NAME is short for --model.name NAME."
    parser = ArgumentParser(prog=command, description=description, exit_on_error=False, allow_abbrev=False)
    own = [name for name, path in named.items() if path.parent.parent.name == command.split()[-1]]
    parser.add_argument(
        "--config", action="config", help=", or one of: ".join(filter(None, ("a YAML file", ", ".join(own or named))))
    )
    parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:
        # Each section has an option of its own that takes a YAML file. It is hidden from the help.
        if action.option_strings and action.option_strings[0] in _NETWORKS:
            action.metavar, action.help = "NAME", f"short for {action.option_strings[0]}.name NAME"
        elif action.dest in _list_sections(config_class):
            action.help = argparse.SUPPRESS
    values = parser.parse_args(_resolve_names(_expand_option_names(arguments, config_class), named))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values = instantiate(values)
    return config_class(**{field.name: getattr(values, field.name) for field in dataclasses.fields(config_class)})


def _list_sections(config_class: type) -> list[str]:
    """Return the names of fields that are dataclasses."""
    kinds = typing.get_type_hints(config_class)
    return [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]


def _expand_option_names(arguments: list[str], config_class: type) -> list[str]:
    """Expand short option names: `--model NAME` becomes `--model.name NAME`.

    A mapping after --model is left as it is. Hyphens between the words of an option become underscores.
    """
    fields, names = {f"--{name}" for name in _list_sections(config_class)}, list_option_names(config_class)
    full, waiting = [], list(arguments)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        underscored = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and underscored in names:
            option = f"--{underscored}"
        if option in _RENAMED:
            raise ValueError(f"{option} is called {_RENAMED[option]}")
        if option in _NETWORKS and option in fields:
            given = value if equals else (waiting[0] if waiting else "")
            option += "" if given.lstrip().startswith("{") else ".name"
        full.append(option + equals + value)
    return full


def _check_yaml(path: str) -> None:
    """Raise ValueError if a file is not YAML, or if its aliases expand to too many values."""
    try:
        count = _count_values(yaml.compose(pathlib.Path(path).read_text(), Loader=yaml.SafeLoader), {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--config: {path} is no YAML file: {' '.join(str(error).split())[:200]}") from None
    if count > _MAX_VALUES:
        raise ValueError(f"--config: {path} stands for more than {_MAX_VALUES} values by its aliases; write out a few")


def _count_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values that a YAML node expands to; infinity for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        inside = getattr(node, "value", ())
        parts = [] if isinstance(inside, str) else [p for x in inside for p in (x if isinstance(x, tuple) else (x,))]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def _resolve_names(arguments: list[str], named: dict[str, pathlib.Path]) -> list[str]:
    resolved, previous = [], None
    for argument in arguments:
        prefix, value = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
        if prefix or previous == "--config":
            if not pathlib.Path(value).is_file():
                name = spelled(value, named)
                if name is None:
                    raise ValueError(
                        f"--config: no file {value!r} and no configuration of that name{there_are(value, named)}"
                    )
                value = str(named[name])
            _check_yaml(value)
        resolved.append(prefix + value)
        previous = argument
    return resolved
