# SPDX-License-Identifier: Apache-2.0
"""The command `fastds train` and what its tasks share: named configurations, the start of a run, resume, export."""

import dataclasses
import importlib
import logging
import pathlib
import signal
import sys
import warnings

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fastds import models

_PACKAGE = pathlib.Path(__file__).parents[2]
# Task -> module with parse_arguments(arguments) and train(config).
TASKS = {
    "radar": "fastds.tasks.radar.training",
    "gan": "fastds.tasks.humidity.training",
    "fields": "fastds.tasks.fields.training",
    "study": "fastds.studies.fields.run",
    "nowcast": "fastds.tasks.nowcast.training",
}
_FOLDERS = {"gan": "tasks/humidity", "study": "studies"}
_ABOUT = {
    "radar": "FC-ZSM on radar files",
    "gan": "WGAN-GP on gridded fields, humidity",
    "fields": "arbitrary-scale networks on latitude-longitude fields",
    "study": "several of those beside their baselines, and the table of their scores",
    "nowcast": "DB-RNN and its family on radar files",
}


def configurations(task: str = "*") -> dict[str, pathlib.Path]:
    """The named configurations that the package ships for a task (default: for all), name -> YAML file."""
    chosen = [task] if task != "*" else list(TASKS)
    folders = [_PACKAGE / _FOLDERS.get(name, f"tasks/{name}") / "configs" for name in chosen]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def overview() -> str:
    """What `fastds train --help` prints: the tasks and the shipped configurations of each."""
    lines = [
        "usage: fastds train TASK --data.path PATH ...       on files of your own",
        "       fastds train --config NAME --data.path PATH  as the package's weights were trained",
        "",
        "Options of a task: fastds train TASK --help. A NAME may be a YAML file, such as --print_config prints.",
        "",
    ]
    lines += [f"  {task:8} {_ABOUT[task]}; NAME: {', '.join(configurations(task))}" for task in TASKS]
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
    task = arguments.pop(0) if arguments[:1] and arguments[0] in TASKS else _task_of(arguments)
    module = importlib.import_module(TASKS[task])
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, tips
    warnings.filterwarnings("ignore", ".*is deprecated|(Experiment logs|Checkpoint) directory", module="lightning")
    # Not so here: NewSamples goes on with the samples of the step, wherever an epoch was left.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended", module="lightning")
    try:
        result = module.train(module.parse_arguments(arguments))
    except ArgumentError as error:
        sentence = " ".join(str(error).split())
        print(f"fastds train: {sentence} (see fastds train {task} --help)", file=sys.stderr)
        return 2
    except (OSError, ImportError, ValueError, FloatingPointError) as error:
        print(f"fastds train: {error}", file=sys.stderr)
        return 2
    print(f"wrote {result}")
    return 0


def _task_of(arguments: list[str]) -> str:
    chosen = {value.removeprefix("--config=") for value in arguments}
    return next((task for task in TASKS if chosen & set(configurations(task))), "radar")


def read_command_line(config_class: type, arguments: list[str], task: str, description: str):
    """Read a command line into a dataclass, every field an option (--data.path, --max_steps, ...).

    `--config` takes a YAML file or the name of a shipped configuration. Raises: ValueError for a name that is neither;
    jsonargparse.ArgumentError for an argument that is unknown, missing or of another type.
    """
    parser = ArgumentParser(prog=f"fastds train {task}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help=f"a YAML file, or one of: {', '.join(configurations(task))}")
    parser.add_class_arguments(config_class, as_group=False)
    values = parser.parse_args(_resolve_names(arguments))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    values = instantiate(values)
    return config_class(**{field.name: getattr(values, field.name) for field in dataclasses.fields(config_class)})


def _resolve_names(arguments: list[str]) -> list[str]:
    named, resolved, previous = configurations(), [], None
    for argument in arguments:
        prefix, value = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
        if (prefix or previous == "--config") and not pathlib.Path(value).is_file():
            if value not in named:
                raise ValueError(
                    f"--config: no file {value!r} and no configuration of that name; there are: {', '.join(named)}"
                )
            value = str(named[value])
        resolved.append(prefix + value)
        previous = argument
    return resolved


def begin(config) -> None:
    """Seed and set the threads. Raises: ValueError for threads below 1."""
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads must be a whole number >= 1, got {config.threads}")
    L.seed_everything(config.seed, verbose=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def make_folder(config) -> pathlib.Path:
    """Make the folder config.output with config.yaml in it, and return it: last, when data and network are there, so
    that a run that cannot start leaves nothing and touches no earlier one. An earlier csv/metrics.csv, which Lightning
    would delete, becomes metrics.0.csv, metrics.1.csv, ..."""
    output = pathlib.Path(config.output)
    log = output / "csv" / "metrics.csv"
    if log.exists():
        log.rename(log.with_name(f"metrics.{len(list(log.parent.glob('metrics.*.csv')))}.csv"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False))
    return output


def _plain(value):
    """Tuples as lists, which YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def keep_last(output: pathlib.Path) -> ModelCheckpoint:
    """The callback that writes checkpoints/last.ckpt after every epoch, whether or not it was the best."""
    return ModelCheckpoint(str(output / "checkpoints"), filename="last", save_top_k=1, enable_version_counter=False)


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, config) -> pathlib.Path:
    """Train, from the last checkpoint in config.output where there is one and config.resume asks for it.

    Returns: the path of best.safetensors. Raises: ValueError for a run that ends without a finite validation error;
        KeyboardInterrupt, after Lightning has shut down.
    """
    output = pathlib.Path(config.output)
    last, best = output / "checkpoints" / "last.ckpt", output / "best.safetensors"
    resume = str(last) if config.resume and last.exists() else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off
        raise KeyboardInterrupt from None
    if trainer.is_global_zero and not best.exists():
        raise ValueError(
            f"the run ended at step {trainer.global_step} without a finite validation error, and has exported no best "
            f"weights; its checkpoint in {output} is kept: resume with a smaller learning rate, or with other "
            "validation data where these are dry"
        )
    return best


def fill_card(card, values: dict, argument: str = "card") -> None:
    """Set fields of a model's card. Raises: ValueError, naming the argument, for one it has not."""
    for key, value in values.items():
        if key not in {field.name for field in dataclasses.fields(card)}:
            raise ValueError(f"{argument} has no field {key!r}")
        setattr(card, key, value)


class ExportBest(Callback):
    """Writes last.safetensors at every validation and best.safetensors at the lowest error so far.

    First in the list of callbacks, so that it sees the averaged weights. Subclasses give validated(trainer, module):
    the network to save, the metrics for its card, and its error.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.best = folder, float("inf")

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        network, network.card.metrics, error = self.validated(trainer, module)
        models.save(network, self.folder / "last.safetensors")
        if error < self.best:
            self.best = error
            models.save(network, self.folder / "best.safetensors")

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]
