# SPDX-License-Identifier: Apache-2.0
"""The fit of the law of a nowcast's errors: `fastds study nowcast-law --data.path FOLDER --output LAW.safetensors`."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastds import models
from fastds.data import open_dataset, reflectivity_to_rate, to_reflectivity
from fastds.data.radar.reflectivity import z_r_law
from fastds.models.ensembles import ErrorLaw, Surroundings
from fastds.studies.command import Files
from fastds.tasks.common.command import read_command_line
from fastds.tasks.common.settings import computing, settle
from fastds.tasks.common.tables import tracked
from fastds.tasks.nowcast.members import known_echo, least_echo, paths_of
from fastds.tasks.nowcast.methods import Method, pick_method
from fastds.tasks.nowcast.starts import coarse_fields

METHODS = ("nowcast-small", "extrapolation")  # whose errors are learned, the first without matched intensities
QUANTILES = 15  # of a distribution, in its score
_EVERY = 5  # pixels of a field from one that is learned from to the next
_LEADS = 5  # of a start
_SHIFTS = (-5.0, 8.0)  # dB that the echo of every second start is raised by
_WIDTH = 0.5  # dB, of the soft threshold of the weakest echo


class Block(NamedTuple):
    """Frames of a file.

    Attributes: file; frames: first and behind the last; stride: frames of the file between two; factor: of the coarser
    grid; every: frames from start to start; steps: most leads.
    """

    file: str
    frames: tuple[int, int | None] = (0, None)
    stride: int = 1
    factor: int = 1
    every: int = 9
    steps: int = 24


# What the law is fitted to: events that fastds study nowcast does not test on, and none that trained nowcast-small.
BLOCKS = (
    Block("radar_dpc_north_20250416_5min.nc", every=10),
    Block("radar_dpc_north_20250416_5min.nc", stride=3, factor=2, every=3, steps=8),
    Block("radar_dpc_sardinia_20250416_5min.nc", every=10),
    Block("radar_dwd_yw_crop_20180513_5min.nc"),
    Block("radar_dwd_yw_crop_20180513_5min.nc", stride=3, every=4, steps=8),
    Block("radar_dwd_yw_crop_20180514_5min.nc"),
    Block("radar_dwd_dx_sw_20080602_5min.nc", every=3),
    Block("radar_knmi_20100826_5min.nc", frames=(70, 92), every=3),
    Block("radar_fmi_20160928_5min.nc", frames=(14, 30), every=3),
)


class Sample(NamedTuple):
    """Pixels of some leads of a start: features (FEATURES, N), truth (N,) dB above the floor, least echo, Z-R law."""

    features: Tensor
    truth: Tensor
    least: float
    z_r: tuple[float, float]


def samples(folder: str | pathlib.Path, blocks: Sequence[Block] = BLOCKS, seed: int = 0) -> list[list[Sample]]:
    """Of every block the samples of all its starts, forwards and backwards in time, so that no event teaches that rain
    grows; every second with its echo raised."""
    methods = [_method(name) for name in METHODS]
    return [
        [
            sample
            for backwards in (False, True)
            for sample in _of_block(pathlib.Path(folder), block, backwards, methods, np.random.default_rng(seed))
        ]
        for block in tracked(blocks, True, "blocks", "forecasting")
    ]


def _method(name: str) -> Method:
    method, _ = pick_method(name)
    return method if method.model is None else method.smoothed()


def _of_block(
    folder: pathlib.Path, block: Block, backwards: bool, methods: Sequence[Method], rng: np.random.Generator
) -> Iterator[Sample]:
    with open_dataset(folder / block.file) as dataset:
        source = to_reflectivity(dataset)
        law, _ = z_r_law(dataset, source.raw)
        frames = range(source.shape[0])[slice(*block.frames, block.stride)]
        z = coarse_fields(source, list(frames), block.factor, 0.0)
    z = z[::-1] if backwards else z
    most = max(method.known for method in methods)
    for number, start in enumerate(range(most - 1, len(z) - 2, block.every)):
        shift = float(rng.uniform(*_SHIFTS)) if number % 2 else 0.0
        part = z[start - most + 1 : start + 1 + block.steps]
        part = np.where(part > 0, (part + shift).clip(0, 60), part)
        leads = np.sort(rng.choice(len(part) - most, min(_LEADS, len(part) - most), replace=False))
        least = least_echo(part[most - 1], law)
        if np.isnan(part[most - 1]).all() or not (part[most - 1] >= least).any():
            continue
        for method in methods:
            known = known_echo(part[most - method.known : most], 0.0)
            mean = torch.from_numpy(method(part[most - method.known : most], int(leads[-1]) + 1))
            around = Surroundings(known, mean, paths_of(known, len(mean)))
            for lead in leads:
                truth = torch.from_numpy(part[most + lead]).clamp(0, 60)
                chosen = (around.valid & ~truth.isnan())[::_EVERY, ::_EVERY]
                features = around.features(int(lead), least)[:, ::_EVERY, ::_EVERY][:, chosen]
                truth = truth[::_EVERY, ::_EVERY][chosen]
                yield Sample(features, torch.where(truth < least, 0.0, truth), least, law)


def score(law: ErrorLaw, features: Tensor, truth: Tensor, least: Tensor, z_r: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """CRPS (N,) of the law in dB and in mm/h, from QUANTILES quantiles of it; differentiable.

    least: (N,). The weakest echo is a soft threshold, so that it has a gradient.
    """
    m, s = law(features)
    places = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    z = m[:, None] + s[:, None] * torch.special.ndtri(places)
    wet = torch.sigmoid((z - least[:, None]) / _WIDTH)
    z = z.clamp(0, 60)
    rain = reflectivity_to_rate_torch(z, z_r)
    return _crps(z * wet, truth), _crps(rain * wet, torch.where(truth > 0, reflectivity_to_rate_torch(truth, z_r), 0.0))


def reflectivity_to_rate_torch(z: Tensor, z_r: tuple[float, float]) -> Tensor:
    """R = (10^(z / 10) / a)^(1 / b)."""
    a, b = z_r
    return torch.exp((z * (math.log(10) / 10) - math.log(a)) / b)


def _crps(x: Tensor, truth: Tensor) -> Tensor:
    """Of a distribution given by equally likely, sorted values (N, q)."""
    count = x.shape[1]
    place = torch.arange(1 - count, count, 2, dtype=x.dtype)
    return (x - truth[:, None]).abs().mean(1) - (place * x).sum(1) / count**2


class _Pool:
    """The pixels of a block, all of its samples after one another."""

    def __init__(self, parts: Sequence[Sample]):
        self.features = torch.cat([part.features for part in parts], 1)
        self.truth = torch.cat([part.truth for part in parts])
        self.least = torch.cat([torch.full_like(part.truth, part.least) for part in parts])
        self.z_r = parts[0].z_r
        rain = torch.where(self.truth > 0, reflectivity_to_rate_torch(self.truth, self.z_r), 0.0)
        self.units = float(self.truth.mean()) + 0.3, float(rain.mean()) + 0.03

    def loss(self, law: ErrorLaw, index: Tensor) -> Tensor:
        """CRPS in dB and in mm/h, each over the mean of the block's echo."""
        parts = score(law, self.features[:, index], self.truth[index], self.least[index], self.z_r)
        return sum(part.mean() / unit for part, unit in zip(parts, self.units, strict=True))


def fit(law: ErrorLaw, blocks: Sequence[Sequence[Sample]], steps: int, seed: int = 0, batch: int = 1000) -> list[float]:
    """Fit a law by the CRPS of so many pixels of every block in each step, Adam, cosine decay; returns the losses.
    Deterministic for one number of threads."""
    pools = [_Pool(parts) for parts in blocks if parts]
    generator, losses = torch.Generator().manual_seed(seed), []
    optimiser = torch.optim.Adam(law.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        draws = (torch.randint(len(pool.truth), (batch,), generator=generator) for pool in pools)
        loss = sum(pool.loss(law, index) for pool, index in zip(pools, draws, strict=True)) / len(pools)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss))
    return losses
