# SPDX-License-Identifier: Apache-2.0
"""The paper's table: every baseline and ablation trained for the same samples, scored on the test regions:
`fastds study humidity --data.path FOLDER --epochs 4`. With `--model` that model is scored and nothing is trained."""

import dataclasses
import json
import pathlib

import torch

from fastds import models
from fastds.studies.command import Files
from fastds.studies.report import write_rows
from fastds.studies.wgan_gp.methods import variants
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
        data: the folder with the files of the training.
        training: name or file of a training configuration that names the regions, and that is trained in variants.
        model: a shipped name or a safetensors file that is scored alone, without any training; none: train.
        epochs: of every training, with its whole schedule.
        members: of the ensembles.
        seed: of the first member.
        output: folder of the trainings.
        threads: of torch; None leaves them as they are.
        json: file for all numbers.
        leaderboard: a file of rows, see docs/models/leaderboard.md, that the scores of model are added to; None: none.
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
    """Read `arguments`, the command line of `fastds study humidity`, into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study humidity", "Scores on the test regions.", {})


def study(config: StudyConfig) -> str | None:
    """What `fastds study humidity` does: prints the tables, returns the JSON file, where one was asked for."""
    if config.leaderboard is not None and config.model is None:
        raise ValueError("leaderboard needs the argument model, whose scores are added")
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
        write_rows(config, models.load_card(config.model).name, leaderboard_rows(tables, config.training))
    if config.json:
        pathlib.Path(config.json).write_text(json.dumps(tables, indent=1))
    return config.json


def leaderboard_rows(tables: list[dict[str, dict]], training: str) -> list[dict]:
    """PSNR of the ensemble's mean and of the field without noise less bicubic interpolation's, of every test region."""
    rows = []
    for number, found in enumerate(tables, 1):
        for name in ("ensemble mean", "no noise"):
            gain = found[f"generator, {name}"]["psnr"] - found["bicubic"]["psnr"]
            told = {"task": "humidity", "data": f"test region {number} of {training}", "better": "higher"}
            rows.append(told | {"score": f"PSNR less bicubic's in dB, {name}", "value": round(gain, 4)})
    return rows


def compare(config: TrainingConfig, epochs: int, members: int = 10, seed: int = 0) -> list[dict[str, dict]]:
    """Train every variant into a folder of its own under config.output, for the same samples, and score all.

    A variant whose folder holds a checkpoint goes on from there. Returns: score's table of every test region.
    """
    networks = {}
    for name, variant in variants(config).items():
        optimiser = dataclasses.replace(variant.optimiser, epochs=epochs)
        folder = str(pathlib.Path(config.output) / name.lower())
        bounds = {"optimiser": optimiser, "max_steps": None, "max_minutes": None}
        networks[name] = models.load(train(dataclasses.replace(variant, output=folder, **bounds)))
    return score(networks, config, members, seed)


def score(
    networks: dict[str, torch.nn.Module], config: TrainingConfig, members: int = 10, seed: int = 0
) -> list[dict[str, dict]]:
    """evaluate_region of every test region of config.data with at least four times."""
    offset, unit = config.data.offset, config.data.range
    regions = [region * unit + offset for region in read_regions(config.data, "test")]
    return [evaluate_region(networks, region, members, seed) for region in regions if len(region) >= 4]
