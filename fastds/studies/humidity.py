# SPDX-License-Identifier: Apache-2.0
"""Comparison of humidity generators, ablations and baselines: `fastds study humidity --data.path FOLDER`.

The methods are scored on test regions. Every network is trained on the same number of samples. With `--model`, only
this model is scored and nothing is trained.
"""

import dataclasses
import json
import pathlib
from typing import Any, cast

import torch

from fastds import models
from fastds._options import OptionError, spell_argument
from fastds.models.card import Network
from fastds.studies.command import Files
from fastds.studies.report import write_rows
from fastds.studies.wgan_gp.methods import make_variants
from fastds.tasks.humidity.config import TrainingConfig
from fastds.tasks.humidity.config import parse_arguments as parse_training
from fastds.tasks.humidity.evaluation import evaluate_region, format_table
from fastds.tasks.humidity.samples import read_regions
from fastds.tasks.humidity.training import train
from fastds.training.command import read_command_line


@dataclasses.dataclass
class StudyConfig:
    """Generators, ablations and baselines on the test regions of a training configuration.

    Args:
        data: folder with the files of the training.
        training: name or file of a training configuration; its regions are used, and its variants are trained.
        model: name of a shipped model or path of a safetensors file that is scored without any training; None trains.
        epochs: number of epochs of each training; the schedule spans all of them.
        members: number of ensemble members.
        seed: random seed of the first member.
        output: folder of the trainings.
        threads: number of threads of torch; None leaves the number unchanged.
        json: file to which all numbers are written.
        leaderboard: file of leaderboard rows (see docs/models/leaderboard.md) to which the scores of model are added;
            None adds none.
    """

    data: Files
    training: str = "wgan-gp-small"
    model: str | None = None
    epochs: int = 4
    members: int = 10
    seed: int = 0
    output: str = "study-humidity"
    threads: int | None = None
    json: str | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study humidity` into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study humidity", "Scores on the test regions.", {})


def study(config: StudyConfig) -> str | None:
    """Run `fastds study humidity`: print the tables and return config.json."""
    if config.leaderboard is not None and config.model is None:
        raise OptionError("leaderboard", f"needs {spell_argument('model')}, whose scores are added")
    training = parse_training(["--config", config.training, "--data.path", config.data.path])
    if config.model is None:
        training = dataclasses.replace(training, output=config.output, threads=config.threads, progress=False)
        tables = compare(training, config.epochs, config.members, config.seed)
    else:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        tables = score({"generator": models.load(config.model)}, training, config.members, config.seed)
    print("\n\n".join(format_table(table) for table in tables))
    if config.leaderboard is not None:
        write_rows(
            config, models.load_card(cast(str, config.model)).name, make_leaderboard_rows(tables, config.training)
        )
    if config.json:
        pathlib.Path(config.json).write_text(json.dumps(tables, indent=1))
    return config.json


def make_leaderboard_rows(tables: list[dict[str, dict]], training: str) -> list[dict]:
    """Make leaderboard rows of the gain in PSNR over bicubic interpolation for each test region.

    There is a row for the ensemble mean and one for the field without noise.
    """
    rows = []
    for number, found in enumerate(tables, 1):
        for name in ("ensemble mean", "no noise"):
            gain = found[f"generator, {name}"]["psnr"] - found["bicubic"]["psnr"]
            row = {"task": "humidity", "data": f"test region {number} of {training}", "better": "higher"}
            rows.append(row | {"score": f"PSNR less bicubic's in dB, {name}", "value": round(gain, 4)})
    return rows


def compare(config: TrainingConfig, epochs: int, members: int = 10, seed: int = 0) -> list[dict[str, dict]]:
    """Train every variant on the same number of samples in a subfolder of config.output, and score all of them.

    A variant whose folder holds a checkpoint is resumed.

    Args:
        config: training configuration from which the variants are derived.
        epochs: number of epochs of each training.
        members: number of ensemble members.
        seed: random seed of the first member.

    Returns:
        One table of scores for each test region, see score.
    """
    networks = {}
    for name, variant in make_variants(config).items():
        optimiser = dataclasses.replace(variant.optimiser, epochs=epochs)
        folder = str(pathlib.Path(config.output) / name.lower())
        bounds: dict[str, Any] = {"optimiser": optimiser, "max_steps": None, "max_minutes": None}
        networks[name] = models.load(train(dataclasses.replace(variant, output=folder, **bounds)))
    return score(networks, config, members, seed)


def score(
    networks: dict[str, Network], config: TrainingConfig, members: int = 10, seed: int = 0
) -> list[dict[str, dict]]:
    """Score networks with evaluate_region on every test region of config.data that has at least four times.

    Args:
        networks: name -> network.
        config: training configuration that names the test regions.
        members: number of ensemble members.
        seed: random seed of the first member.

    Returns:
        One table of scores for each test region.
    """
    offset, unit = config.data.offset, config.data.range
    regions = [region * unit + offset for region in read_regions(config.data, "test")]
    return [evaluate_region(networks, region, members, seed) for region in regions if len(region) >= 4]
