# SPDX-License-Identifier: Apache-2.0
"""The times of every file to train, validate and test on, and the test samples."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings

import numpy as np
import torch

from fastds import data as fd
from fastds import metrics
from fastds.data.grid.variables import duration_seconds
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.report import evenly
from fastds.studies.fczsm.config import DataConfig
from fastds.tasks.common.folders import usable_files
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.samples import RadarData

_GAP = 2  # frames between the parts, which then share none
_TEST, _VALIDATION = 0.25, 0.1
CROP = 32  # coarse pixels of a training sample, but with the paper's budget
MARGIN = 2  # fine pixels next to missing ones or to the edge that do not count


@dataclasses.dataclass
class TestBlock:
    """Samples of the last part of a file.

    Attributes: name of the file; samples, dicts as of EvaluationTriples, in the window (rows, columns of fine pixels);
    blocks: number of the block of time of each; echo: share of the valid pixels above 15 dBZ.
    """

    name: str
    samples: list[dict[str, torch.Tensor]]
    blocks: list[int]
    window: tuple[slice, slice]
    echo: float


def parts_of(frames: int, name: str) -> dict[str, list[int]]:
    """Frames [start, stop) to train, validate and test on, in this order, with a gap between them."""
    test, validation = (max(3, round(share * frames)) for share in (_TEST, _VALIDATION))
    train = frames - test - validation - 2 * _GAP
    if train < 3:
        raise ValueError(f"{name} has {frames} times, too few to train, validate and test on: at least 13")
    first = train + _GAP
    return {
        "train": [0, train], "validation": [first, first + validation], "test": [first + validation + _GAP, frames]
    }  # fmt: skip


def find_files(config: DataConfig) -> dict[str, dict[str, list[int]]]:
    """Name of every file -> its parts. Raises: FileNotFoundError, ValueError where none can be used."""

    def parts(file: pathlib.Path) -> dict[str, list[int]]:
        with fd.open_dataset(file) as dataset:
            frames, *grid = fd.to_reflectivity(dataset, config.var).shape
        if min(grid) < 2 * CROP:
            raise ValueError(f"the grid of {file.name} is {tuple(grid)}, a sample needs {2 * CROP} pixels a side")
        return parts_of(frames, file.name)

    root = pathlib.Path(config.path)
    if not root.exists():
        raise FileNotFoundError(f"data.path: no such file or folder: {root}")
    if root.is_file():
        return {root.name: parts(root)}
    if not config.files:
        return {file.name: found for file, found in usable_files(root, parts).items()}
    missing = [name for name in config.files if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"data.files: no such file: {root / missing[0]}")
    return {name: parts(root / name) for name in config.files}


def path_of(config: DataConfig, name: str) -> pathlib.Path:
    """A file of find_files."""
    root = pathlib.Path(config.path)
    return root if root.is_file() else root / name


def without_dynamics(config: DataConfig, names: list[str]) -> str:
    """Why channels of config.dynamics are not to be had; "" where they are."""
    if not config.dynamics:
        return "data.dynamics names none"
    for name in names:
        with fd.open_dataset(path_of(config, name)) as dataset:
            missing = [variable for variable in config.dynamics if variable not in dataset.data_vars]
        if missing:
            return f"{name} has no {' and no '.join(missing)}"
    return ""


def training_data(config: DataConfig, files: dict[str, dict[str, list[int]]], crop: int) -> TrainingData:
    """The samples of every training."""
    blocks = {name: {key: part[key] for key in ("train", "validation")} for name, part in files.items()}
    return TrainingData(
        config.path, blocks, var=config.var, statics=config.statics, dynamics=config.dynamics, crop=crop
    )


def static_maps(config: DataConfig, names: list[str]) -> dict[str, np.ndarray]:
    """Static maps by file, normalised as in the trainings. Raises: ValueError where they do not cover a file."""
    if not config.statics:
        return {}
    reader = RadarData(TrainingData(config.path, var=config.var, statics=config.statics), False, 0, len(config.statics))
    return dict(zip(names, reader.statics_of([str(path_of(config, name)) for name in names]), strict=True))


def test_block(
    config: DataConfig, name: str, part: list[int], static: np.ndarray | None, with_dynamics: bool
) -> TestBlock:
    """The test samples of a file, part: its frames; static: its maps or None."""
    path = path_of(config, name)
    dynamic = DynamicFields(path, config.dynamics, slice(*part), config.var) if with_dynamics else None
    block = fd.TimeBlock(str(path), *part, var=config.var)
    triples = fd.EvaluationTriples(block, static=static, dynamic=dynamic)
    if not len(triples):
        raise ValueError(f"data.path: {name} has no three times at equal intervals in its last part")
    chosen = evenly(len(triples), config.test_samples)
    seconds = triples.store.seconds[triples.index[chosen, 0]]
    length = duration_seconds(config.block, "data.block")
    samples = [dict(triples[k]) for k in chosen]
    rows, columns = window_of(samples, config.window)
    samples = [_cut(sample, rows, columns) for sample in samples]
    wet = sum(int((s["y"][s["valid"]] > 0).sum()) for s in samples)
    count = sum(int(s["valid"].sum()) for s in samples)
    if not count:
        raise ValueError(f"data.path: {name} has no valid pixels in its last part")
    return TestBlock(name, samples, [int(s // length) for s in seconds], (rows, columns), wet / count)


def window_of(samples: list[dict[str, torch.Tensor]], side: int) -> tuple[slice, slice]:
    """The square with most echo, on every fourth pixel and with even coarse sides; all of a smaller field."""
    echo = sum((s["y"] > 0) & s["valid"] for s in samples).sum((0, 1)).double()
    sums = torch.nn.functional.pad(echo.cumsum(0).cumsum(1), (1, 0, 1, 0))
    height, width = (min(side, n) for n in echo.shape)
    tops, lefts = (torch.arange(0, n - m + 1, 4) for n, m in zip(echo.shape, (height, width), strict=True))
    corner = [sums[r][:, c] for r in (tops, tops + height) for c in (lefts, lefts + width)]
    best = int((corner[3] - corner[1] - corner[2] + corner[0]).argmax())
    top, left = int(tops[best // len(lefts)]), int(lefts[best % len(lefts)])
    return slice(top, top + height), slice(left, left + width)


def _cut(sample: dict[str, torch.Tensor], rows: slice, columns: slice) -> dict[str, torch.Tensor]:
    """A window of a sample, whose valid pixels are MARGIN from its edge and from missing ones."""
    coarse = tuple(slice(s.start // 2, s.stop // 2) for s in (rows, columns))
    cut = {key: z[..., *((rows, columns) if key in ("y", "valid") else coarse)] for key, z in sample.items()}
    cut["valid"] = metrics.interior(cut["valid"].all(dim=0, keepdim=True), MARGIN).expand_as(cut["y"])
    return {key: z.contiguous() for key, z in cut.items()}


def quietly(call):
    """What call returns, without its warnings, which the study has shown before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()
