# SPDX-License-Identifier: Apache-2.0
"""Radar files of a study: selection, division along time, and the test window."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastds import data as fd
from fastds._options import spell_name
from fastds.report import MapGrid
from fastds.studies.common.config import RadarFiles
from fastds.studies.common.tables import ResultTable
from fastds.training.folders import scan_folder

_GAP = 2  # frames between the parts, so that samples of different parts share no frame
_TEST, _VALIDATION = 0.25, 0.1


def split_frames(frames: int, name: str, least: int, tested: int | None = None) -> dict[str, list[int]]:
    """Divide the frames of a file into training, validation and test, in this order, with gaps between them.

    Args:
        frames: number of frames.
        name: name of the file, for the error message.
        least: minimum number of frames of each part.
        tested: minimum number of test frames; None: least.

    Returns:
        Part -> [first, one after the last].

    Raises:
        ValueError: if there are too few frames.
    """
    tested = tested or least
    test, validation = max(tested, round(_TEST * frames)), max(least, round(_VALIDATION * frames))
    train = frames - test - validation - 2 * _GAP
    if train < least:
        raise ValueError(
            f"{name} has {frames} times, too few to train, validate and test on: at least "
            f"{2 * least + tested + 2 * _GAP}"
        )
    first = train + _GAP
    return {
        "train": [0, train], "validation": [first, first + validation], "test": [first + validation + _GAP, frames]
    }  # fmt: skip


def find_files(config: RadarFiles, side: int, least: int, tested: int | None = None) -> dict[str, dict[str, list[int]]]:
    """Find the usable files and divide them into parts.

    Args:
        config: the files.
        side: smallest grid side in pixels that a sample needs.
        least: minimum number of frames of each part.
        tested: minimum number of test frames; None for `least`.

    Returns:
        A dictionary from the file name to the parts of split_frames.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is not usable, or no file of a folder is.
    """

    def parts(file: pathlib.Path) -> dict[str, list[int]]:
        with fd.open_dataset(file) as dataset:
            frames, *grid = fd.to_reflectivity(dataset, config.var).shape
        if min(grid) < side:
            raise ValueError(f"the grid of {file.name} is {tuple(grid)}, a sample needs {side} pixels a side")
        return split_frames(frames, file.name, least, tested)

    root = pathlib.Path(config.path)
    if not root.exists():
        raise FileNotFoundError(f"{spell_name('data.path')}: no such file or folder: {root}")
    if root.is_file():
        return {root.name: parts(root)}
    if not config.files:
        return {file.name: found for file, found in scan_folder(root, parts).items()}
    missing = [name for name in config.files if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{spell_name('data.files')}: no such file: {root / missing[0]}")
    return {name: parts(root / name) for name in config.files}


def resolve_path(config: RadarFiles, name: str) -> pathlib.Path:
    """Return the path of a file that find_files returned."""
    root = pathlib.Path(config.path)
    return root if root.is_file() else root / name


def select_training_parts(files: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """Return the parts for training and validation, in the form of the option data.blocks."""
    return {name: {key: part[key] for key in ("train", "validation")} for name, part in files.items()}


def find_echo_window(echo: Tensor, side: int, every: int = 4) -> tuple[slice, slice]:
    """Find the square with the largest echo area.

    Args:
        echo: (H, W) number of times with echo.
        side: side of the square in pixels; smaller fields are used whole.
        every: spacing of the candidate positions in pixels.

    Returns:
        Slices of rows and columns.
    """
    sums = torch.nn.functional.pad(echo.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    height, width = (min(side, n) for n in echo.shape)
    tops, lefts = (torch.arange(0, n - m + 1, every) for n, m in zip(echo.shape, (height, width), strict=True))
    corner = [sums[r][:, c] for r in (tops, tops + height) for c in (lefts, lefts + width)]
    best = int((corner[3] - corner[1] - corner[2] + corner[0]).argmax())
    top, left = int(tops[best // len(lefts)]), int(lefts[best % len(lefts)])
    return slice(top, top + height), slice(left, left + width)


@dataclasses.dataclass
class EvaluationBlock:
    """Test samples of one file.

    Attributes:
        name: name of the file.
        samples: dicts with y and valid, cropped to the window.
        blocks: number of the block of time of each sample.
        window: rows and columns of the test window in the grid of the file.
        echo: fraction of the valid pixels with echo.
        windows: window of each sample, if samples have different windows.
    """

    name: str
    samples: Sequence[dict[str, Tensor]]
    blocks: list[int]
    window: tuple[slice, slice]
    echo: float
    windows: Sequence[tuple[slice, slice]] = ()


def find_most_echo(blocks: list[EvaluationBlock], above: float = 0.0) -> tuple[EvaluationBlock, int]:
    """Find the test sample with the largest fraction of y above a value.

    Returns:
        The block and the index of the sample in the block.
    """
    share = {
        (number, k): float((sample["y"] > above).float().mean())
        for number, block in enumerate(blocks)
        for k, sample in enumerate(block.samples)
    }
    number, sample = max(share, key=share.__getitem__)
    return blocks[number], sample


def read_grid(config: RadarFiles, block: EvaluationBlock, sample: int) -> MapGrid:
    """Read the map grid of the window of a sample.

    Args:
        config: files of the study.
        block: test samples of one file.
        sample: index of the sample in the block.

    Returns:
        The grid.
    """
    window = block.windows[sample] if block.windows else block.window
    with fd.open_dataset(resolve_path(config, block.name)) as dataset:
        return MapGrid.of(fd.to_reflectivity(dataset, config.var).raw[..., *window], dataset)


def tabulate_samples(blocks: list[EvaluationBlock], files: Mapping[str, Mapping[str, list[int]]]) -> ResultTable:
    """Tabulate the training, validation and test parts of all files."""
    rows = []
    for block in blocks:
        rows_, columns = block.window
        parts = ["at random"] * 3
        if block.name in files:
            parts = [f"{first} to {stop - 1}" for first, stop in files[block.name].values()]
        size = f"{rows_.stop - rows_.start} x {columns.stop - columns.start}"
        counts = str(len(block.samples)), str(len(set(block.blocks)))
        rows.append((block.name, *parts, *counts, size, f"{100 * block.echo:.1f}"))
    heads = ("file", "training", "validation", "test", "test samples", "blocks of time", "window", "echo %")
    return ResultTable("Frames of every file, and the test samples", heads, rows)
