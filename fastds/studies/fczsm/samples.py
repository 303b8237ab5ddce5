# SPDX-License-Identifier: Apache-2.0
"""The times of every file to train, validate and test on, and the test samples."""

from __future__ import annotations

import numpy as np
import torch

from fastds import data as fd
from fastds import metrics
from fastds.data.grid.variables import duration_seconds
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.report import evenly
from fastds.studies.common.radar import TestedBlock, path_of, training_blocks, window_of
from fastds.studies.fczsm.config import DataConfig
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.samples import RadarData

LEAST = 3  # frames of a sample
CROP = 32  # coarse pixels of a training sample, but with the paper's budget
MARGIN = 2  # fine pixels next to missing ones or to the edge that do not count


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
    return TrainingData(
        config.path, training_blocks(files), var=config.var, statics=config.statics, dynamics=config.dynamics, crop=crop
    )


def static_maps(config: DataConfig, names: list[str]) -> dict[str, np.ndarray]:
    """Static maps by file, normalised as in the trainings. Raises: ValueError where they do not cover a file."""
    if not config.statics:
        return {}
    reader = RadarData(TrainingData(config.path, var=config.var, statics=config.statics), False, 0, len(config.statics))
    return dict(zip(names, reader.statics_of([str(path_of(config, name)) for name in names]), strict=True))


def test_block(
    config: DataConfig, name: str, part: list[int], static: np.ndarray | None, with_dynamics: bool
) -> TestedBlock:
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
    echo = sum((s["y"] > 0) & s["valid"] for s in samples).sum((0, 1))
    rows, columns = window_of(echo, config.window)
    samples = [_cut(sample, rows, columns) for sample in samples]
    wet = sum(int((s["y"][s["valid"]] > 0).sum()) for s in samples)
    count = sum(int(s["valid"].sum()) for s in samples)
    if not count:
        raise ValueError(f"data.path: {name} has no valid pixels in its last part")
    return TestedBlock(name, samples, [int(s // length) for s in seconds], (rows, columns), wet / count)


def _cut(sample: dict[str, torch.Tensor], rows: slice, columns: slice) -> dict[str, torch.Tensor]:
    """A window of a sample, whose valid pixels are MARGIN from its edge and from missing ones."""
    coarse = tuple(slice(s.start // 2, s.stop // 2) for s in (rows, columns))
    cut = {key: z[..., *((rows, columns) if key in ("y", "valid") else coarse)] for key, z in sample.items()}
    cut["valid"] = metrics.interior(cut["valid"].all(dim=0, keepdim=True), MARGIN).expand_as(cut["y"])
    return {key: z.contiguous() for key, z in cut.items()}
