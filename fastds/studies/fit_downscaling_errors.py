# SPDX-License-Identifier: Apache-2.0
"""Fit of the error model of downscaled radar fields.

Command: `fastds study downscaling-errors --data.path FOLDER --output FILE`.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fastds import data as fd
from fastds import models
from fastds.data.radar.reflectivity import MARSHALL_PALMER
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.tables import track_progress
from fastds.models import ModelCard
from fastds.models.baselines import optical_flow
from fastds.models.card import Network
from fastds.models.ensembles import ErrorModel
from fastds.models.ensembles.downscaling_features import ERROR_INDEX, FEATURES, WET_SHARE_INDEX
from fastds.studies.command import Files
from fastds.studies.common.error_model_fit import Pool, fit_pools
from fastds.tasks.radar.members import MIN_ECHO_SHARE, make_details
from fastds.training.command import read_command_line

_INTERVALS = (1, 2, 3)
_TRIPLES = 2  # triples of a block for each interval and coarsening operator
_PIXELS = 8000  # pixels drawn from a field
_SMOOTH = 0.6  # width in pixels of the Gaussian that imitates radars with little detail
_SPREAD = 0.3  # weight of the spread term of the loss, see Pool
_HIDDEN = 32


class Block(NamedTuple):
    """Frames of a file.

    Attributes:
        file: name of the file.
        frames: first frame, and the frame after the last.
        every: spacing of the triples in frames.
        smoothed: True to use a smoothed copy in addition.
    """

    file: str
    frames: tuple[int, int | None]
    every: int
    smoothed: bool = True


# Training files of fczsm-small. Two of them are also test files of `fastds study radar`, with later frames.
BLOCKS = (
    Block("radar_fmi_20160928_5min.nc", (0, 21), 4),
    Block("radar_knmi_20100826_5min.nc", (0, 75), 12, smoothed=False),
    Block("radar_dwd_yw_crop_20180513_5min.nc", (0, 180), 24),
    Block("radar_dwd_yw_crop_20180516_5min.nc", (0, 132), 24),
    Block("radar_dwd_dx_sw_20080602_5min.nc", (0, 25), 5),
)
CARD: dict[str, Any] = {
    "name": "downscaling-errors",
    "description": "Error model of fczsm-small at a pixel, given local features; ensemble members are drawn from it.",
    "licence": "Apache-2.0 as the package; fitted to open data of FMI, KNMI and DWD (CC BY 4.0).",
    "training_data": [f"{block.file} of ../shared/data" for block in BLOCKS],
    "grid_spacing_m": (2000.0, 4000.0),
    "cadence_s": (600.0, 1800.0),
    "space_factor": 2,
    "time_factor": 2,
}


class _SmoothedStore:
    """Frames of a store after a Gaussian filter; values below 5 dBZ are raised to 5 dBZ before."""

    def __init__(self, store: fd.FrameStore, width: float):
        self.store, self.width = store, width

    def __getattr__(self, name: str):
        return getattr(self.store, name)

    def dbz(self, *places) -> np.ndarray:
        z = self.store.dbz(*places)
        smooth = gaussian_filter(np.where(np.isnan(z), 5, z.clip(5)), (0, self.width, self.width))
        return np.where(np.isnan(z), np.nan, smooth).astype(z.dtype)


def make_pools(folder: pathlib.Path, model: Network, blocks: Sequence[Block] = BLOCKS, seed: int = 0) -> list[Pool]:
    """Make a pool of pixels near echo for each block, and another for the smoothed copy of the block if it has one.

    The pixels are those of network outputs at input times and at interpolated times. Inputs coarsened by linear Z and
    by means of dBZ are equally frequent.

    Args:
        folder: folder with the radar files.
        model: network whose errors are modelled.
        blocks: frames of the files.
        seed: random seed of the pixels.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    a, b = MARSHALL_PALMER
    z_r = a / 10 ** (model.card.floor_dbz / 10), b  # Z-R relation for reflectivity above the floor
    for block in track_progress(blocks, True, "blocks", "downscaling"):
        for smoothed in (False, True)[: 1 + block.smoothed]:
            parts = list(_iter_fields(folder, block, smoothed, model, generator))
            if parts:
                features, truth = torch.cat([f for f, _ in parts], 1), torch.cat([t for _, t in parts])
                found.append(Pool(features, truth, torch.zeros_like(truth), z_r, spread=_SPREAD))
    return found


def _iter_fields(
    folder: pathlib.Path, block: Block, smoothed: bool, model: Network, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (F, n) and truth (n,), in dB above the floor, of random pixels of each network output."""
    floor, span = model.card.floor_dbz, model.card.ceiling_dbz - model.card.floor_dbz
    source = fd.TimeBlock(str(folder / block.file), *block.frames)
    for interval, mode in itertools.product(_INTERVALS, ("dbz", "linear_z")):
        triples = fd.EvaluationTriples(
            source, every=max(1, block.every // interval), interval=interval, floor=floor, mode=mode
        )
        if smoothed:
            triples.store = cast(Any, _SmoothedStore)(triples.store, _SMOOTH)
        for sample in itertools.islice((triples[i] for i in range(len(triples))), _TRIPLES):
            x, truth, valid = sample["x"], sample["y"][:, 0] * span, sample["valid"].all(0)[0]
            flow = optical_flow(x[None])
            with torch.inference_mode():
                y = model(x[None], flow=flow)[0, :, 0].clamp(0, 1)
            for k, detail in enumerate(make_details(y, x[:, 0], flow[0], model.card)):
                features = detail.compute_all()
                places = (valid & (features[WET_SHARE_INDEX] > MIN_ECHO_SHARE)).flatten().nonzero()[:, 0]
                places = places[torch.randperm(len(places), generator=generator)[:_PIXELS]]
                yield features.flatten(1)[:, places].clone(), truth[k].flatten()[places]


@dataclasses.dataclass
class StudyConfig:
    """Fit of the error model from which members of downscaled radar fields are drawn.

    Args:
        data: folder with the radar files.
        model: network whose errors are modelled: a shipped name or a weights file.
        output: weights file to write.
        steps: number of optimizer steps.
        seed: random seed of samples and weights.
        threads: number of threads of torch; None leaves the number unchanged.
    """

    data: Files
    model: str = "fczsm-small"
    output: str = "downscaling-errors.safetensors"
    steps: int = 3000
    seed: int = 0
    threads: int | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study downscaling-errors` into a StudyConfig."""
    return read_command_line(
        StudyConfig, arguments, "fastds study downscaling-errors", "The error model of downscaled fields.", {}
    )


def study(config: StudyConfig) -> str:
    """Run `fastds study downscaling-errors`: fit the error model, write it and return the file."""
    model = models.load(config.model).eval()
    torch.manual_seed(config.seed)
    error_model = ErrorModel(_HIDDEN, FEATURES, ERROR_INDEX)
    with inference_context(None, resolve_execution(None, config.threads)):
        learned = make_pools(pathlib.Path(config.data.path), model, seed=config.seed)
    losses = fit_pools(error_model, learned, config.steps, config.seed, batch=600)
    network: Network = model
    error_model.card = ModelCard(**CARD, valid_range=(network.card.floor_dbz, network.card.ceiling_dbz))
    error_model.card.metrics = {"loss": round(float(np.mean(losses[-100:])), 4)}
    models.save(error_model, config.output)
    return config.output
