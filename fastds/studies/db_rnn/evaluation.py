# SPDX-License-Identifier: Apache-2.0
"""Training and test samples of the DB-RNN study, and the scores of a method on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastds import data as fd
from fastds import models
from fastds._options import OptionError
from fastds.data import RAIN_THRESHOLDS, normalised_rates
from fastds.data.grid.variables import parse_duration
from fastds.data.samples.radar_windows import RadarWindows
from fastds.inference.execution import inference_context, resolve_execution
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.metrics.nowcasts import BALANCE_WEIGHTS, contingency_scores
from fastds.report import select_evenly
from fastds.studies.common.radar import EvaluationBlock, find_echo_window, resolve_path, select_training_parts
from fastds.studies.common.runs import suppress_warnings
from fastds.studies.db_rnn.config import DataConfig
from fastds.studies.db_rnn.methods import FUTURE, KNOWN, METHODS, RATES, SCORES
from fastds.tasks.nowcast.config import DataConfig as TrainingData
from fastds.tasks.nowcast.methods import BASELINES


def count_frames(config: DataConfig, leads: int = 1) -> int:
    """Count the frames of a file that a sample spans.

    Args:
        config: the files.
        leads: length of the forecast in units of FUTURE frames.
    """
    return (KNOWN + leads * FUTURE - 1) * config.interval + 1


def make_training_data(config: DataConfig, files: dict[str, dict[str, list[int]]]) -> TrainingData:
    """Make the data configuration of all trainings."""
    return TrainingData(
        config.path, select_training_parts(files), var=config.var, scales=[config.scale], intervals=[config.interval]
    )


def read_test_block(config: DataConfig, name: str, part: list[int]) -> EvaluationBlock:
    """Read the test samples of a file.

    Args:
        config: the files.
        name: name of the file.
        part: first frame, and the frame after the last.

    Returns:
        The block. Its samples are dicts of x (m, 1, h, w), y and valid (n, 1, h, w), and known, the mask of valid
            pixels of x. All are cropped to the window.
    """
    block = fd.TimeBlock(str(resolve_path(config, name)), part[0], part[1], var=config.var)
    windows = _windows(block, config, FUTURE)
    chosen = select_evenly(len(windows), config.test_samples)
    seconds = windows.store.seconds[windows.index[chosen, KNOWN - 1]]
    length = parse_duration(config.block, "data.block")
    samples = [dict(windows[k]) for k in chosen]
    _divide_valid(samples)
    echo: Any = sum((s["y"] > 0) & s["valid"] for s in samples)
    rows, columns = find_echo_window(echo.sum((0, 1)), config.window // config.scale)
    samples = _crop_samples(samples, rows, columns)
    count = sum(int(s["valid"].sum()) for s in samples)
    if not count:
        raise OptionError("data.path", f": {name} has no valid pixels in its last part")
    wet = sum(int((s["y"][s["valid"]] > 0).sum()) for s in samples)
    window: Any = tuple(slice(s.start * config.scale, s.stop * config.scale) for s in (rows, columns))
    return EvaluationBlock(name, samples, [int(s // length) for s in seconds], window, wet / count)


def make_long_samples(
    config: DataConfig, block: EvaluationBlock, part: list[int], leads: int
) -> list[dict[str, Tensor]]:
    """Make test samples of a file as in read_test_block, with y and valid of leads * FUTURE frames.

    Args:
        config: the files.
        block: test block of the file, whose window is used.
        part: first frame, and the frame after the last.
        leads: length of the forecast in units of FUTURE frames.

    Raises:
        ValueError: if the part is too short.
    """
    source = fd.TimeBlock(str(resolve_path(config, block.name)), part[0], part[1], var=config.var)
    windows = _windows(source, config, leads * FUTURE)
    samples = [dict(windows[k]) for k in select_evenly(len(windows), config.test_samples)]
    _divide_valid(samples)
    rows, columns = (slice(s.start // config.scale, s.stop // config.scale) for s in block.window)
    return _crop_samples(samples, rows, columns)


def _windows(block: fd.TimeBlock, config: DataConfig, future: int) -> RadarWindows:
    return RadarWindows(block, known=KNOWN, future=future, interval=config.interval, scale=config.scale)


def _divide_valid(samples: list[dict[str, Tensor]]) -> None:
    """Move the mask of valid pixels of the input frames from the key "valid" to the key "known"."""
    for sample in samples:
        sample["known"], sample["valid"] = sample["valid"][:KNOWN], sample["valid"][KNOWN:]


def _crop_samples(samples: list[dict[str, Tensor]], rows: slice, columns: slice) -> list[dict[str, Tensor]]:
    return [{key: z[..., rows, columns].contiguous() for key, z in sample.items()} for sample in samples]


PIXELS = 160**2  # pixels of the paper's fields; B-MSE and B-MAE are sums over a field and are scaled to this size
LONG_RATE = 10.0  # mm/h, threshold of the scores of long forecasts
# A Predict is a function from (sample, steps) to forecasts (k + steps, 1, H, W), in which 0 to 1 stand for 0 to 60 dBZ.
# The first k frames are forecasts of input frames.
Predict = Callable[[dict[str, Tensor], int], Tensor]


def score(predict: Predict, blocks: list[EvaluationBlock], z_r: Sequence[float]) -> dict[str, Any]:
    """Count contingency tables and errors of the FUTURE forecast frames by sample and lead time.

    Args:
        predict: the method.
        blocks: test samples.
        z_r: (a, b) of the Z-R relation.

    Returns:
        A dictionary of lists: counts (samples, n, thresholds, 4), the numbers of hits, misses, false alarms and correct
            negatives; errors (samples, n, 2), sums of B-MSE and B-MAE; pixels (samples, n), the numbers of valid
            pixels. If the network also outputs forecasts of the input frames, the key "all" has such a dictionary for
            all output frames.
    """
    thresholds = normalised_rates(RAIN_THRESHOLDS, (z_r[0], z_r[1]))
    found, whole = _make_counts(), _make_counts()
    for sample in (sample for block in blocks for sample in block.samples):
        made = predict(sample, FUTURE)
        _add_counts(found, made[-FUTURE:], sample["y"], sample["valid"], thresholds)
        earlier = len(made) - FUTURE
        if earlier:
            truth = torch.cat([sample["x"][-earlier:], sample["y"]])
            valid = torch.cat([sample["known"][-earlier:], sample["valid"]])
            _add_counts(whole, made, truth, valid, thresholds)
    return found | ({"all": whole} if whole["counts"] else {})


def score_long(predict: Predict, samples: Sequence[dict[str, Tensor]], z_r: Sequence[float]) -> list:
    """Count the contingency tables of long forecasts at LONG_RATE.

    Args:
        predict: the method.
        samples: samples with n target frames, where n is a multiple of FUTURE.
        z_r: (a, b) of the Z-R relation.

    Returns:
        (samples, n / FUTURE, 4): hits, misses, false alarms and correct negatives, summed over FUTURE frames.
    """
    threshold, counts = normalised_rates([LONG_RATE], (z_r[0], z_r[1])), []
    for sample in samples:
        found, steps = _make_counts(), len(sample["y"])
        made = predict(sample, steps)[-steps:]
        _add_counts(found, made, sample["y"], sample["valid"], threshold, BALANCE_WEIGHTS[:2])
        counts.append(np.array(found["counts"][0])[:, 0].reshape(-1, FUTURE, 4).sum(1).tolist())
    return counts


def _make_counts() -> dict[str, list]:
    return {"counts": [], "errors": [], "pixels": []}


def _add_counts(
    found: dict[str, list],
    made: Tensor,
    truth: Tensor,
    valid: Tensor,
    thresholds: Sequence[float],
    weights: Sequence[float] = BALANCE_WEIGHTS,
) -> None:
    """Append the counts of one sample to found."""
    sums = NowcastScores(thresholds, len(truth), weights=weights)
    sums.add(made[None], truth[None], valid[None])
    found["counts"].append(sums.counts.tolist())
    found["errors"].append(sums.sums[:, :2].tolist())
    found["pixels"].append(sums.pixels.tolist())


class ScoreSums:
    """Scores of a method for weighted test samples, as means over seeds and lead times.

    Args:
        found: results of score, one for each seed.
    """

    def __init__(self, found: Sequence[Mapping[str, Any]]):
        self.counts, self.errors, self.pixels = (
            np.array([one[key] for one in found], float) for key in ("counts", "errors", "pixels")
        )

    @property
    def samples(self) -> int:
        """Number of test samples."""
        return self.counts.shape[1]

    def by_lead(self, name: str, weights: np.ndarray) -> np.ndarray:
        """Compute a score of SCORES by lead time.

        Args:
            name: name of the score.
            weights: (draws, samples).

        Returns:
            (draws, n) for n lead times.
        """
        if name in SCORES[-2:]:
            sums = np.einsum("ds,kst->kdt", weights, self.errors[..., SCORES[-2:].index(name)])
            return PIXELS * (sums / np.einsum("ds,kst->kdt", weights, self.pixels)).mean(0)
        kind, rate = name.split()
        table = np.einsum("ds,kstc->kdtc", weights, self.counts[:, :, :, RATES.index(rate)])
        return contingency_scores(table)[kind.lower()].mean(0)

    def mean(self, name: str, weights: np.ndarray) -> np.ndarray:
        """Average a score over the lead times at which it is defined.

        Args:
            name: name of the score.
            weights: (draws, samples).

        Returns:
            (draws,).
        """
        return mean_of_defined(self.by_lead(name, weights).T)


def call_with_prediction(
    name: str,
    weights: str | os.PathLike | None,
    threads: int | None,
    device: str,
    use: Callable[[Predict], object],
    restart: bool = False,
) -> object:
    """Call use(predict), where predict makes the forecasts of a method, and return its result.

    Args:
        name: name of the method.
        weights: weights of the network; None for methods without one.
        threads: number of threads of torch; None leaves the number unchanged.
        device: device of the network.
        use: function of predict.
        restart: forecasts longer than FUTURE steps restart from the last forecast frames.
    """
    if not METHODS[name].kind:
        function, known, _ = BASELINES[name]

        def simple(sample: dict[str, Tensor], steps: int) -> Tensor:
            x = torch.where(sample["known"], sample["x"], torch.nan)[None, -known:]
            return function(x, steps)[0].clamp(0, 1)

        with inference_context(None, resolve_execution(None, threads)):
            return use(simple)
    model = suppress_warnings(lambda: models.load(cast(str, weights)))
    settings = resolve_execution(model, threads, "fp32", device)

    def learned(sample: dict[str, Tensor], steps: int) -> Tensor:
        x = sample["x"][None].to(settings.device)
        if steps == FUTURE:
            return model(x, steps)[-1][0].clamp(0, 1).float().cpu()
        known = x.shape[1]
        while restart and x.shape[1] < known + steps:
            x = torch.cat([x, model.forecast(x[:, -known:], FUTURE)], 1)
        made = x[:, known:][:, :steps] if restart else model.forecast(x, steps)
        return made[0].float().cpu()

    with inference_context(model, settings):
        return use(learned)
