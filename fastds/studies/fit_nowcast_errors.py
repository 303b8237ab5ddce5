# SPDX-License-Identifier: Apache-2.0
"""Fit of the error model of nowcasts: `fastds study nowcast-errors --data.path FOLDER --output FILE.safetensors`."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastds import models
from fastds.data import open_dataset, to_reflectivity
from fastds.data.radar.reflectivity import find_z_r
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.tables import track_progress
from fastds.models import ModelCard
from fastds.models.ensembles import ErrorModel, ForecastFeatures
from fastds.studies.command import Files
from fastds.studies.common.error_model_fit import Pool, fit_pools, score
from fastds.tasks.nowcast.members import find_detection_threshold, find_trajectories, scale_known_frames
from fastds.tasks.nowcast.methods import Method, pick_method
from fastds.tasks.nowcast.starts import ForecastCells, read_coarse_frames
from fastds.training.command import read_command_line

METHODS = ("nowcast-small", "extrapolation")  # the model forecasts without matched intensities
_EVERY = 5  # spacing of the sampled pixels
_LEADS = 5  # lead times sampled from a forecast
_SHIFTS = (-5.0, 8.0)  # range in dB of the random shift of every second forecast
_LEAD = -6  # index of log(k + 1) among the features


class Block(NamedTuple):
    """Frames of a file.

    Attributes:
        file: name of the file.
        frames: first frame, and the frame after the last.
        stride: frames of the file from one used frame to the next.
        factor: coarsening factor of the grid.
        every: used frames from one initialization time to the next.
        steps: largest number of lead times.
    """

    file: str
    frames: tuple[int, int | None] = (0, None)
    stride: int = 1
    factor: int = 1
    every: int = 9
    steps: int = 24


# Frames of files with open licences that are not in the test of `fastds study nowcast`. nowcast-small was trained on
# radar_dwd_dx_sw_20080602_5min.nc and on parts of radar_dwd_yw_crop_20180513_5min.nc and of radar_fmi_20160928_5min.nc.
# Its squared error relative to extrapolation is lower there by no more than on files that it was not trained on.
BLOCKS = (
    Block("radar_dwd_dx_sw_20080602_5min.nc", every=3),
    Block("radar_dwd_yw_crop_20180513_5min.nc"),
    Block("radar_dwd_yw_crop_20180513_5min.nc", stride=3, every=4, steps=8),
    Block("radar_dwd_yw_crop_20180514_5min.nc"),
    Block("radar_dwd_yw_crop_20180514_5min.nc", stride=3, every=4, steps=8),
    Block("radar_knmi_20100826_5min.nc", frames=(70, 92), every=3),
    Block("radar_fmi_20160928_5min.nc", frames=(14, 30), every=3),
)

CARD: dict[str, Any] = {
    "name": "nowcast-errors",
    "description": "Error model of a nowcast at a pixel, given local features; ensemble members are drawn from it.",
    "licence": "Apache-2.0 as the package; fitted to open data of DWD, KNMI and FMI (CC BY 4.0).",
    "training_data": [f"{block.file} of ../shared/data" for block in {block.file: block for block in BLOCKS}.values()],
    "grid_spacing_m": (1000.0, 1000.0),
    "cadence_s": (300.0, 900.0),
}


class Sample(NamedTuple):
    """Pixels of one lead time of a forecast.

    Attributes:
        features: (F, N) features of the error model.
        truth: (N,) dB above the floor.
        least: detection threshold in dB above the floor.
        z_r: (a, b) of the Z-R relation.
    """

    features: Tensor
    truth: Tensor
    least: float
    z_r: tuple[float, float]


def make_samples(folder: str | pathlib.Path, blocks: Sequence[Block] = BLOCKS, seed: int = 0) -> list[list[Sample]]:
    """Make samples of all forecasts of each block.

    Each block is used forwards and backwards in time, so that growth and decay of rain are equally frequent. The
    reflectivity of every second forecast is shifted at random.

    Args:
        folder: folder of the files.
        blocks: parts of files.
        seed: random seed of each block and direction of time.

    Returns:
        Samples of each block.
    """
    methods = [_load_method(name) for name in METHODS]
    return [
        [
            sample
            for backwards in (False, True)
            for sample in _iter_samples(pathlib.Path(folder), block, backwards, methods, np.random.default_rng(seed))
        ]
        for block in track_progress(blocks, True, "blocks", "forecasting")
    ]


def _load_method(name: str) -> Method:
    method, _ = pick_method(name)
    return method if method.model is None else method.with_smooth_forecasts()


def _iter_samples(
    folder: pathlib.Path, block: Block, backwards: bool, methods: Sequence[Method], rng: np.random.Generator
) -> Iterator[Sample]:
    with open_dataset(folder / block.file) as dataset:
        source = to_reflectivity(dataset)
        z_r, _ = find_z_r(dataset, source.raw)
        frames = range(source.shape[0])[slice(*block.frames, block.stride)]
        z = read_coarse_frames(source, list(frames), ForecastCells(block.factor, 0.0))
    z = z[::-1] if backwards else z
    most = max(method.known for method in methods)
    for number, start in enumerate(range(most - 1, len(z) - 2, block.every)):
        shift = float(rng.uniform(*_SHIFTS)) if number % 2 else 0.0
        part = z[start - most + 1 : start + 1 + block.steps]
        part = np.where(part > 0, (part + shift).clip(0, 60), part)
        leads = np.sort(rng.choice(len(part) - most, min(_LEADS, len(part) - most), replace=False))
        least = find_detection_threshold(part[most - 1], z_r)
        if np.isnan(part[most - 1]).all() or not (part[most - 1] >= least).any():
            continue
        for method in methods:
            known = scale_known_frames(part[most - method.known : most], 0.0)
            mean = torch.from_numpy(method(part[most - method.known : most], int(leads[-1]) + 1))
            around = ForecastFeatures(known, mean, find_trajectories(known, len(mean)))
            for lead in leads:
                truth = torch.from_numpy(part[most + lead]).clamp(0, 60)
                chosen = (around.valid & ~truth.isnan())[::_EVERY, ::_EVERY]
                features = around.compute(int(lead), least)[:, ::_EVERY, ::_EVERY][:, chosen]
                truth = truth[::_EVERY, ::_EVERY][chosen]
                yield Sample(features, torch.where(truth < least, 0.0, truth), least, z_r)


def _make_pool(parts: Sequence[Sample]) -> Pool:
    """Concatenate the samples of a block.

    Pixels of lead time k have weight 1 / k; otherwise early lead times, which have small errors, would not matter.
    """
    features, truth = torch.cat([part.features for part in parts], 1), torch.cat([part.truth for part in parts])
    least = torch.cat([torch.full_like(part.truth, part.least) for part in parts])
    return Pool(features, truth, least, parts[0].z_r, 1 / torch.expm1(features[_LEAD].double()))


def fit(
    error_model: ErrorModel, blocks: Sequence[Sequence[Sample]], steps: int, seed: int = 0, batch: int = 1000
) -> list[float]:
    """Fit an error model to the samples of blocks with fit_pools.

    Args:
        error_model: the error model.
        blocks: samples of each block.
        steps: number of optimizer steps.
        seed: random seed of the draws.
        batch: pixels of each block in a step.

    Returns:
        The loss of each step.
    """
    return fit_pools(error_model, [_make_pool(parts) for parts in blocks if parts], steps, seed, batch)


@dataclasses.dataclass
class StudyConfig:
    """Fit of the error model from which members of ensemble nowcasts are drawn.

    The files of the fit are not used in the test of `fastds study nowcast`.

    Args:
        data: folder with the radar files.
        output: weights file to write.
        steps: number of optimizer steps.
        seed: random seed of samples and weights.
        threads: number of threads of torch; None leaves the number unchanged.
    """

    data: Files
    output: str = "nowcast-errors.safetensors"
    steps: int = 2000
    seed: int = 0
    threads: int | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study nowcast-errors` into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study nowcast-errors", "The error model of nowcasts.", {})


def study(config: StudyConfig) -> str:
    """Run `fastds study nowcast-errors`: fit and write the error model with scores by block, and return the file."""
    with inference_context(None, resolve_execution(None, config.threads)):
        blocks = make_samples(config.data.path, seed=config.seed)
    torch.manual_seed(config.seed)
    error_model = ErrorModel()
    losses = fit(error_model, blocks, config.steps, config.seed)
    error_model.card = ModelCard(**CARD)
    error_model.card.metrics = {"loss": round(float(np.mean(losses[-100:])), 4)} | {
        f"{block.file}, every {block.stride}": _summarize(error_model, parts)
        for block, parts in zip(BLOCKS, blocks, strict=True)
    }
    models.save(error_model, config.output)
    return config.output


def _summarize(error_model: ErrorModel, parts: Sequence[Sample]) -> dict[str, float]:
    """Compute the CRPS of the error model on the pixels it was fitted to."""
    with torch.no_grad():
        found = [
            score(error_model, part.features, part.truth, torch.full_like(part.truth, part.least), part.z_r)
            for part in parts
        ]
    return {
        "crps dB": round(float(torch.cat([one.echo for one in found]).mean()), 3),
        "crps mm/h": round(float(torch.cat([one.rain for one in found]).mean()), 4),
    }
