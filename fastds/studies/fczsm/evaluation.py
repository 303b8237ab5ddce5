# SPDX-License-Identifier: Apache-2.0
"""Training and test samples of the FC-ZSM study, and the scores of a method on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastds import data as fd
from fastds import metrics, models
from fastds._options import OptionError, spell_name
from fastds.data.grid.variables import parse_duration
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.data.samples.radar_triples import Draw
from fastds.inference.execution import inference_context, resolve_execution
from fastds.metrics.errors import CEILING_DBZ
from fastds.report import select_evenly
from fastds.studies.common.radar import EvaluationBlock, find_echo_window, resolve_path, select_training_parts
from fastds.studies.common.runs import suppress_warnings
from fastds.studies.fczsm.config import DataConfig
from fastds.studies.fczsm.methods import METHODS
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.methods import BASELINES
from fastds.tasks.radar.samples import RadarData

LEAST = 3  # minimum number of frames of a part
CROP = 32  # side of training crops in coarse pixels; the budget "paper" has its own
MARGIN = 2  # pixels this close to the edge or to missing pixels are not scored


def explain_missing_dynamics(config: DataConfig, names: list[str]) -> str:
    """Return the reason why channels of config.dynamics are missing, or "" if all are present."""
    if not config.dynamics:
        return f"{spell_name('data.dynamics')} names none"
    for name in names:
        with fd.open_dataset(resolve_path(config, name)) as dataset:
            missing = [variable for variable in config.dynamics if variable not in dataset.data_vars]
        if missing:
            return f"{name} has no {' and no '.join(missing)}"
    return ""


def make_training_data(config: DataConfig, files: dict[str, dict[str, list[int]]], crop: int) -> TrainingData:
    """Make the data configuration of all trainings.

    Args:
        config: the files.
        files: file -> its parts.
        crop: side of the coarse crops in pixels.
    """
    shared: dict[str, Any] = {"var": config.var, "statics": config.statics, "dynamics": config.dynamics, "crop": crop}
    if config.split == "time":
        return TrainingData(config.path, select_training_parts(files), **shared)
    drawn: dict[str, Any] = {key: getattr(config, key) for key in ("fixed_samples", "split_seed", "minimum_echo")}
    return TrainingData(config.path, split="random", **drawn, **shared)


def read_static_maps(config: DataConfig, names: list[str]) -> dict[str, np.ndarray]:
    """Read the static fields by file, normalised as in the trainings. Raises ValueError if they do not cover a file."""
    if not config.statics:
        return {}
    reader = RadarData(TrainingData(config.path, var=config.var, statics=config.statics), False, 0, len(config.statics))
    return dict(zip(names, reader.read_statics([str(resolve_path(config, name)) for name in names]), strict=True))


def read_test_block(
    config: DataConfig, name: str, part: list[int], static: np.ndarray | None, with_dynamics: bool
) -> EvaluationBlock:
    """Read the test samples of a file.

    Args:
        config: the files.
        name: name of the file.
        part: first frame, and the frame after the last.
        static: static fields, or None.
        with_dynamics: read the dynamic channels.
    """
    path = resolve_path(config, name)
    dynamic = DynamicFields(path, config.dynamics, slice(*part), config.var) if with_dynamics else None
    block = fd.TimeBlock(str(path), part[0], part[1], var=config.var)
    triples = fd.EvaluationTriples(block, static=static, dynamic=dynamic)
    if not len(triples):
        raise OptionError("data.path", f": {name} has no three times at equal intervals in its last part")
    chosen = _select_by_echo(triples, cast(float, config.minimum_echo))
    if not len(chosen):
        raise OptionError(
            "data.minimum_echo", f": no time of the last part of {name} has {config.minimum_echo:.0%} of echo"
        )
    chosen = chosen[select_evenly(len(chosen), config.test_samples)]
    seconds = triples.store.seconds[triples.index[chosen, 0]]
    length = parse_duration(config.block, "data.block")
    samples = [dict(triples[k]) for k in chosen]
    echo: Any = sum((s["y"] > 0) & s["valid"] for s in samples)
    rows, columns = find_echo_window(echo.sum((0, 1)), config.window)
    samples = [_crop_samples(sample, rows, columns) for sample in samples]
    wet = sum(int((s["y"][s["valid"]] > 0).sum()) for s in samples)
    count = sum(int(s["valid"].sum()) for s in samples)
    if not count:
        raise OptionError("data.path", f": {name} has no valid pixels in its last part")
    return EvaluationBlock(name, samples, [int(s // length) for s in seconds], (rows, columns), wet / count)


def _select_by_echo(triples: fd.EvaluationTriples, least: float) -> np.ndarray:
    """Return the indices of the samples whose whole fields have at least the fraction `least` of echo."""
    if not least:
        return np.arange(len(triples))
    shares = [fd.echo_fraction(triples.store.dbz(index), triples.floor) for index in triples.index]
    return np.flatnonzero(np.array(shares) >= least)


class FixedSamples(Sequence):
    """Randomly drawn test samples, read on access; dicts as in read_test_block.

    Args:
        triples: samples of the files.
        draws: the samples that were drawn.
    """

    def __init__(self, triples: fd.RadarTriples, draws: Sequence[Draw]):
        self.triples, self.draws = triples, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: Any) -> Any:
        sample = self.triples.read(self.draws[number])
        return _exclude_margin({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()})


def read_fixed_blocks(config: DataConfig, training: TrainingData) -> list[EvaluationBlock]:
    """Read the test samples of data.split=random by file.

    Args:
        config: the files.
        training: data configuration with all channels that a method reads.
    """
    data = RadarData(training, False, 0, len(training.statics), in_channels=1 + len(training.dynamics))
    data.setup()
    length, found = parse_duration(config.block, "data.block"), []
    for number, store in enumerate(data.training.stores):
        draws = [draw for draw in data.test_draws if draw.source == number]
        if not draws:
            continue
        samples = FixedSamples(data.test, draws)
        windows = [data.test.window(draw) for draw in draws]
        wet = [float((s["y"][s["valid"]] > 0).float().mean()) for s in samples]
        blocks = [int(store.seconds[draw.triple[0]] // length) for draw in draws]
        found.append(EvaluationBlock(data.files[number], samples, blocks, windows[0], float(np.nanmean(wet)), windows))
    return found


def _crop_samples(sample: dict[str, torch.Tensor], rows: slice, columns: slice) -> dict[str, torch.Tensor]:
    """Crop a sample to a window."""
    coarse: Any = tuple(slice(s.start // 2, s.stop // 2) for s in (rows, columns))
    cut = {key: z[..., *((rows, columns) if key in ("y", "valid") else coarse)] for key, z in sample.items()}
    return {key: z.contiguous() for key, z in _exclude_margin(cut).items()}


def _exclude_margin(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mark pixels within MARGIN of the edge or of missing pixels as invalid."""
    valid = metrics.interior(sample["valid"].all(dim=0, keepdim=True), MARGIN).expand_as(sample["y"])
    return sample | {"valid": valid.contiguous()}


FLOOR_DBZ = 15.0
SCORES = ("mse_total", "mse_t2", "mse_t13", "ssim")
# Function from a sample to (3, H, W) in dBZ.
Predict = Callable[[dict[str, Tensor]], Tensor]


def score(predict: Predict, blocks: list[EvaluationBlock]) -> dict[str, list[float]]:
    """Compute the scores of radar_errors, score -> one number for each sample of all blocks."""
    found = [
        metrics.radar_errors(predict(s), _dbz(s["y"])[:, 0], s["valid"][:, 0], FLOOR_DBZ)
        for block in blocks
        for s in block.samples
    ]
    return {name: [row[name] for row in found] for name in SCORES}


def call_with_prediction(
    name: str, weights: str | os.PathLike | None, threads: int | None, device: str, use: Callable[[Predict], object]
) -> object:
    """Call use(predict), where predict makes the fields of a method, and return its result.

    Args:
        name: name of the method.
        weights: weights of the network; None for methods without one.
        threads: number of threads of torch; None leaves the number unchanged.
        device: device of the network.
        use: function of predict.
    """
    if METHODS[name].preset is None:
        with inference_context(None, resolve_execution(None, threads)):
            return use(lambda sample: _dbz(BASELINES[name](sample["x"][None, :, :1], 2)[0, :, 0]))
    model = suppress_warnings(lambda: models.load(cast(str, weights)))
    settings = resolve_execution(model, threads, "fp32", device)

    def predict(sample: dict[str, Tensor]) -> Tensor:
        given = {"x": sample["x"][:, : model.config["in_channels"]]}
        if METHODS[name].static:
            given["static"] = sample["static"]
        y = model(**{key: z[None].to(settings.device) for key, z in given.items()})
        return _dbz(y[0, :, 0].float().cpu())

    with inference_context(model, settings):
        return use(predict)


def _dbz(x: Tensor) -> Tensor:
    return fd.restore(x, FLOOR_DBZ, CEILING_DBZ)
