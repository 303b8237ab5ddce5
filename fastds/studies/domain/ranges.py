# SPDX-License-Identifier: Apache-2.0
"""Input ranges of a model card, computed from the training samples.

`fastds study input-ranges --data.path FOLDER --model fczsm-small --output FILE` writes weights with these ranges.
"""

import dataclasses
import importlib

from fastds import models
from fastds._options import OptionError
from fastds.models.card import Network
from fastds.studies.command import Files
from fastds.training.command import read_command_line
from fastds.training.config import RunConfig
from fastds.training.model_card import set_card_fields
from fastds.training.modules import BaseDataModule


@dataclasses.dataclass
class StudyConfig:
    """Write weights again, with a model card that has the ranges of the input statistics over the training samples.

    Missing fields of the card are filled from the training configuration. The weights are unchanged.

    Args:
        data: folder or file of the training.
        model: name of a shipped model or path of a safetensors file.
        training: name or file of the training configuration; default: the configuration with the model's name.
        output: weights file to write.
        samples: number of training samples to read.
    """

    data: Files
    model: str = "fczsm-small"
    training: str | None = None
    output: str = "ranges.safetensors"
    samples: int = 400


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study input-ranges` into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study input-ranges", "Ranges of training inputs.", {})


def study(config: StudyConfig) -> str:
    """Run `fastds study input-ranges`: print the ranges and return config.output."""
    if config.samples < 2:
        raise OptionError("samples", f"must be at least 2, got {config.samples}")
    model: Network = models.load(config.model)
    card, training = model.card, load_training(model, config.training or model.card.name, config.data.path)
    set_card_fields(card, {key: value for key, value in training.model.card.items() if not getattr(card, key, True)})
    card.input_ranges = make_training_data(model, training).compute_input_ranges(config.samples)
    for what, (low, high) in card.input_ranges.items():
        print(f"{what:20} {low:10.5g} to {high:.5g}")
    models.save(model, config.output)
    return config.output


def load_training(model: Network, name: str, path: str) -> RunConfig:
    """Load a training configuration of a model's task.

    Args:
        model: network with a model card.
        name: name or file of the configuration.
        path: path of the data.
    """
    options = importlib.import_module(f"fastds.tasks.{model.card.task}.config")
    return options.parse_arguments(["--config", name, "--data.path", path])


def make_training_data(model: Network, config: RunConfig) -> BaseDataModule:
    """Read the samples of a training."""
    task = model.card.task
    data = importlib.import_module(f"fastds.tasks.{task}.samples")
    if task == "radar":
        made = data.RadarData(config.data, flow=False, seed=config.seed)
    elif task == "nowcast":
        made = data.NowcastData(config.data, moving=False, seed=config.seed)
    elif task == "humidity":
        made = data.HumidityData(config.data, model.config["scale"], config.seed, start=lambda: 0)
    else:
        made = data.FieldData(config.data, seed=config.seed)
    made.setup("fit")
    return made
