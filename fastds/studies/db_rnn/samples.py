# SPDX-License-Identifier: Apache-2.0
"""Training and test samples of the DB-RNN study."""

from __future__ import annotations

from torch import Tensor

from fastds import data as fd
from fastds.data.grid.variables import duration_seconds
from fastds.data.samples.radar_windows import RadarWindows
from fastds.report import select_evenly
from fastds.studies.common.radar import EvaluationBlock, find_echo_window, resolve_path, select_training_parts
from fastds.studies.db_rnn.config import DataConfig
from fastds.studies.db_rnn.methods import FUTURE, KNOWN
from fastds.tasks.nowcast.config import DataConfig as TrainingData


def count_frames(config: DataConfig, leads: int = 1) -> int:
    """Count the frames of a file that a sample spans; leads: length of the forecast in units of FUTURE frames."""
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
        Samples are dicts of x (m, 1, h, w), y and valid (n, 1, h, w), cropped to the window, and known, the valid
            pixels of x.
    """
    block = fd.TimeBlock(str(resolve_path(config, name)), *part, var=config.var)
    windows = _windows(block, config, FUTURE)
    chosen = select_evenly(len(windows), config.test_samples)
    seconds = windows.store.seconds[windows.index[chosen, KNOWN - 1]]
    length = duration_seconds(config.block, "data.block")
    samples = [dict(windows[k]) for k in chosen]
    _divide_valid(samples)
    echo = sum((s["y"] > 0) & s["valid"] for s in samples).sum((0, 1))
    rows, columns = find_echo_window(echo, config.window // config.scale)
    samples = _crop_samples(samples, rows, columns)
    count = sum(int(s["valid"].sum()) for s in samples)
    if not count:
        raise ValueError(f"data.path: {name} has no valid pixels in its last part")
    wet = sum(int((s["y"][s["valid"]] > 0).sum()) for s in samples)
    window = tuple(slice(s.start * config.scale, s.stop * config.scale) for s in (rows, columns))
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
    source = fd.TimeBlock(str(resolve_path(config, block.name)), *part, var=config.var)
    windows = _windows(source, config, leads * FUTURE)
    samples = [dict(windows[k]) for k in select_evenly(len(windows), config.test_samples)]
    _divide_valid(samples)
    rows, columns = (slice(s.start // config.scale, s.stop // config.scale) for s in block.window)
    return _crop_samples(samples, rows, columns)


def _windows(block: fd.TimeBlock, config: DataConfig, future: int) -> RadarWindows:
    return RadarWindows(block, known=KNOWN, future=future, interval=config.interval, scale=config.scale)


def _divide_valid(samples: list[dict[str, Tensor]]) -> None:
    """Move the valid pixels of the input frames to the key "known"."""
    for sample in samples:
        sample["known"], sample["valid"] = sample["valid"][:KNOWN], sample["valid"][KNOWN:]


def _crop_samples(samples: list[dict[str, Tensor]], rows: slice, columns: slice) -> list[dict[str, Tensor]]:
    return [{key: z[..., rows, columns].contiguous() for key, z in sample.items()} for sample in samples]
