# SPDX-License-Identifier: Apache-2.0
"""The command `fastds train` and the reader of its options: named configurations, shorthands, one sentence for errors.

Every task reads its options with read_command_line, so that an option means the same in all of them.
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
_MOST_VALUES, _LONGEST = 100_000, 1000  # values of a configuration; letters of an error about one
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}
_PACKAGE = pathlib.Path(__file__).parents[1]
# Task -> what is trained. fastds.tasks.TASK.config has parse_arguments(arguments), .training has train(config).
TASKS = {
    "radar": "FC-ZSM and U-Nets on radar files",
    "fields": "arbitrary-scale networks (INR) on latitude-longitude fields",
    "humidity": "WGAN-GP on gridded fields, humidity",
    "nowcast": "DB-RNN and its family on radar files",
}
_FORMER = {
    "gan": "gan is called humidity: fastds train humidity",
    "study": "study is a command of its own: fastds study",
}
# Options of earlier versions and what they are called.
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
# Options that name a network: `--model NAME` is short for `--model.name NAME`.
_NETWORKS = ("--model", "--critic")


def configurations(task: str = "*") -> dict[str, pathlib.Path]:
    """The named configurations that the package ships for a task (default: for all), name -> YAML file."""
    folders = [_PACKAGE / name / "configs" for name in ([task] if task != "*" else TASKS)]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def overview() -> str:
    """What `fastds train --help` prints: the tasks and the shipped configurations of each."""
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
    told = {task: f"{about}; NAME: {', '.join(configurations(task))}" for task, about in TASKS.items()}
    further = {"width": 118, "subsequent_indent": " " * 11, "break_on_hyphens": False}
    lines += [textwrap.fill(text, initial_indent=f"  {task:8} ", **further) for task, text in told.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command `fastds train [TASK] --config NAME|FILE ...`: trains, prints where the result is, returns the
    exit status; a user's error is one sentence and status 2.

    arguments: without the program's name; None: those of the process. TASK is a key of TASKS; without it a shipped
    configuration's own, else radar."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["-h"], ["--help"]):
        print(overview())
        return 0
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    unknown = None if first is None else unknown_task(first)
    if unknown is not None:
        print(unknown, file=sys.stderr)
        return 2
    task = arguments.pop(0) if first else _task_of(arguments)

    from fastds.models.registry import check_preset

    options = importlib.import_module(f"fastds.tasks.{task}.config")

    def train() -> pathlib.Path:
        config = options.parse_arguments(arguments)
        if config.model.start is None:  # Lightning, which is imported next, takes seconds
            check_preset(config.model.name)
        if config.report is not None:
            _check_report(config)
        from fastds.tasks.common.verdict import verdict

        training = importlib.import_module(f"fastds.tasks.{task}.training")
        quieten_lightning()
        best = training.train(config)
        said = verdict(best)
        if said:
            print(said)
        if config.report is not None and os.environ.get("LOCAL_RANK", "0") == "0":  # one of several processes
            _write_report(config, best)
        return best

    return guarded(f"fastds train {task}", train, option_names(options.TrainingConfig))


def unknown_task(name: str) -> str | None:
    """The sentence of `fastds train` about a task that there is not, None for one that there is."""
    if name in TASKS:
        return None
    return f"fastds train: {_FORMER.get(name) or f'there is no task {name!r}{there_are(name, TASKS)}'}"


def _check_report(config) -> None:
    from fastds.report import check_report

    check_report(config.report, made=config.output)


def _write_report(config, best: pathlib.Path) -> None:
    from fastds.tasks.common.training_report import write_training_report

    write_training_report(config.report, best, config)


@contextlib.contextmanager
def training_of(task: str) -> Iterator[ModuleType]:
    """The module that trains the networks of a task; behind the block torch has its threads again."""
    import torch

    training, before = importlib.import_module(f"fastds.tasks.{task}.training"), torch.get_num_threads()
    quieten_lightning()
    try:
        yield training
    finally:
        torch.set_num_threads(before)


def quieten_lightning() -> None:
    """Once it is imported, which sets the level of its log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, tips
    warnings.filterwarnings("ignore", ".*is deprecated|(Experiment logs|Checkpoint) directory", module="lightning")
    # Not so here: NewSamples goes on with the samples of the step, wherever an epoch was left.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended", module="lightning")


def option_names(config_class: type) -> set[str]:
    """The names of the fields of a configuration, those of its parts as data.path."""
    kinds = typing.get_type_hints(config_class)
    inside = {name: dataclasses.fields(kinds[name]) for name in _parts(config_class)}
    return set(kinds) | {f"{name}.{field.name}" for name, fields in inside.items() for field in fields}


def with_options(sentence: str, names: set[str]) -> str:
    """A sentence that names fields of a configuration with the options of the command line: "data.crop must be ..."
    becomes "--data.crop must be ...". Single words only where they cannot be others: "resume=false", "threads must"."""

    def argument(found: re.Match) -> str:
        own = next((name for name in (found[1], f"data.{found[1]}") if name in names), None)
        return f"--{own}" if own else found[0]

    # There is no such option. The words are plausible.MEND_FIRST, not imported: that loads xarray.
    sentence = sentence.replace("tell the right ones with the argument units", "mend the file first")

    sentence = re.sub(r"\bthe argument ([a-z_]+)", argument, sentence).replace("name_or_path '", "model '")

    def option(found: re.Match) -> str:
        name, rest = found[0], sentence[found.end() :]
        sure = "." in name or "_" in name or rest.startswith("=")
        sure |= not found.start() and rest.startswith((" must ", ": ", " deblurrer "))
        return f"--{name}" if name in names and sure else name

    return re.sub(r"(?<![\w./'\"-])[a-z]+(?:[._][a-z_]+)*", option, sentence)


def parser_sentence(error: ArgumentError, command: str, between: str = "_", options: Collection[str] = ()) -> str:
    """What jsonargparse says of a command line, without its keys and Python's classes; and where there is help.

    between: what stands between the words of an option. options: those that are known."""
    said = " ".join(str(error).split())
    key, kinds = re.match(r'Parser key "([\w.]+)": ', said), re.findall(r"Expected an? <class '(\w+)'>", said)
    given = re.search(r"(?:Got|Given) value: (.*?)(?: Given value type.*)?$", said)
    missing = re.fullmatch(r"the following arguments are required: (.*)", said)
    unknown = re.match(r"unrecognized arguments: (--?[A-Za-z]\S*)", said)
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", said)
    if key and given and kinds and set(kinds) <= set(_KINDS):
        wanted = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
        said = f"--{key[1].replace('_', between)} must be {wanted}, got {given[1]!r}"
    elif key:
        said = f"--{key[1]}: {said[key.end() :]}"
    elif missing:
        prefix = command.split()[-1] + "."  # of what has no option's name
        names = missing[1].split(", ")
        names = [n.removeprefix(prefix).upper() if n.startswith(prefix) else f"--{n}" for n in names]
        said = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    elif unknown:
        option = unknown[1].partition("=")[0]
        said = f"unknown option {option}{did_you_mean(option, options)}"
    elif choice:
        said += did_you_mean(choice[1], re.findall(r"'([^']+)'", choice[2]))
    said = said if len(said) <= _LONGEST else said[:_LONGEST] + " ..."
    return f"{said} (see {command} --help)"


def guarded(command: str, run: Callable[[], object], names: set[str] = frozenset()) -> int:
    """Run a training or a study and print where its result is; a user's error is one sentence and status 2.

    names: of options, as errors in Python's words have them."""
    prog = " ".join(command.split()[:2])
    try:
        result = run()
    except ArgumentError as error:
        options = {f"--{name}" for name in names} | {"--config", "--help", "--print_config"}
        print(f"{prog}: {parser_sentence(error, command, options=options)}", file=sys.stderr)
        return 2
    except (OSError, ImportError, ValueError, FloatingPointError, MemoryError) as error:
        show_traceback()
        print(f"{prog}: {with_options(' '.join(str(error).split()), names)}", file=sys.stderr)
        return 2
    except Exception as error:  # no user's error, and still no traceback
        show_traceback()
        print(f"{prog}: {internal_error(error)}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        if str(interrupt):  # one of several processes says it
            print(f"{prog}: {with_options(str(interrupt), names)}", file=sys.stderr)
        return interrupt.status
    if result is not None:
        print(f"wrote {result}")
    return 0


def _task_of(arguments: list[str]) -> str:
    chosen = {value.removeprefix("--config=") for value in arguments}
    return next((task for task in TASKS if any(spelled(name, configurations(task)) for name in chosen)), "radar")


def read_command_line(
    config_class: type[Config],
    arguments: list[str],
    command: str,
    description: str,
    named: dict[str, pathlib.Path] | None = None,
) -> Config:
    """Read a command line into a dataclass, every field an option (--data.path, --max_steps, ...).

    config_class: the dataclass. arguments: without the command. command: such as "fastds train radar". description: for
    its help. `--config` takes a YAML file or a name in `named` (None: of the shipped configurations of all tasks).
    `--model NAME` is short for `--model.name NAME`, and `--critic` likewise.

    Raises: ValueError for a configuration that is neither; jsonargparse.ArgumentError for an argument that is unknown,
    missing or of another type.
    """
    named = configurations() if named is None else named
    if "model" in _parts(config_class):
        description += " --model NAME is short for --model.name NAME."
    parser = ArgumentParser(prog=command, description=description, exit_on_error=False, allow_abbrev=False)
    own = [name for name, path in named.items() if path.parent.parent.name == command.split()[-1]]
    parser.add_argument(
        "--config", action="config", help=", or one of: ".join(filter(None, ("a YAML file", ", ".join(own or named))))
    )
    parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:
        # Beside its parts each group has an option of its own, which takes a file of them.
        if action.option_strings and action.option_strings[0] in _NETWORKS:
            action.metavar, action.help = "NAME", f"short for {action.option_strings[0]}.name NAME"
        elif action.dest in _parts(config_class):
            action.help = argparse.SUPPRESS
    values = parser.parse_args(_resolve_names(_full_names(arguments, config_class), named))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values = instantiate(values)
    return config_class(**{field.name: getattr(values, field.name) for field in dataclasses.fields(config_class)})


def _parts(config_class: type) -> list[str]:
    """The fields that are dataclasses themselves."""
    kinds = typing.get_type_hints(config_class)
    return [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]


def _full_names(arguments: list[str], config_class: type) -> list[str]:
    """`--model NAME` as `--model.name NAME`; a mapping after --model stays. Hyphens between the words of an option, as
    other commands have them, become underscores."""
    fields, names = {f"--{name}" for name in _parts(config_class)}, option_names(config_class)
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
    """ValueError for a file that is no YAML, or whose aliases stand for more values than a configuration has."""
    try:
        count = _values(yaml.compose(pathlib.Path(path).read_text(), Loader=yaml.SafeLoader), {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--config: {path} is no YAML file: {' '.join(str(error).split())[:200]}") from None
    if count > _MOST_VALUES:
        raise ValueError(f"--config: {path} stands for more than {_MOST_VALUES} values by its aliases; write out a few")


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a node stands for; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        inside = getattr(node, "value", ())
        parts = [] if isinstance(inside, str) else [p for x in inside for p in (x if isinstance(x, tuple) else (x,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
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
