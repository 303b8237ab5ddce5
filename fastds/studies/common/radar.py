# SPDX-License-Identifier: Apache-2.0
"""Radar files of a study: which of them, their parts in time, and the part of the field that is tested on."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastds import data as fd
from fastds.report import MapGrid
from fastds.studies.common.config import RadarFiles
from fastds.studies.common.tables import ResultTable
from fastds.tasks.common.folders import usable_files

_GAP = 2  # frames between the parts, which then share none
_TEST, _VALIDATION = 0.25, 0.1


def split_frames(frames: int, name: str, least: int, tested: int | None = None) -> dict[str, list[int]]:
    """Frames [start, stop) to train, validate and test on, in this order, with a gap between them.

    least: of each part. tested: of the test; None: least."""
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
    """Name of every file -> its parts, see parts_of for least and tested. side: pixels that a sample needs.

    Raises: FileNotFoundError, ValueError where none can be used.
    """

    def parts(file: pathlib.Path) -> dict[str, list[int]]:
        with fd.open_dataset(file) as dataset:
            frames, *grid = fd.to_reflectivity(dataset, config.var).shape
        if min(grid) < side:
            raise ValueError(f"the grid of {file.name} is {tuple(grid)}, a sample needs {side} pixels a side")
        return split_frames(frames, file.name, least, tested)

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


def resolve_path(config: RadarFiles, name: str) -> pathlib.Path:
    """A file of find_files."""
    root = pathlib.Path(config.path)
    return root if root.is_file() else root / name


def select_training_parts(files: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """data.blocks of a training: the parts of every file that it may see."""
    return {name: {key: part[key] for key in ("train", "validation")} for name, part in files.items()}


def find_echo_window(echo: Tensor, side: int, every: int = 4) -> tuple[slice, slice]:
    """The square with most echo (H, W), on every such pixel; all of a smaller field."""
    sums = torch.nn.functional.pad(echo.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    height, width = (min(side, n) for n in echo.shape)
    tops, lefts = (torch.arange(0, n - m + 1, every) for n, m in zip(echo.shape, (height, width), strict=True))
    corner = [sums[r][:, c] for r in (tops, tops + height) for c in (lefts, lefts + width)]
    best = int((corner[3] - corner[1] - corner[2] + corner[0]).argmax())
    top, left = int(tops[best // len(lefts)]), int(lefts[best % len(lefts)])
    return slice(top, top + height), slice(left, left + width)


@dataclasses.dataclass
class EvaluationBlock:
    """Samples of the last part of a file.

    Attributes: name of the file; samples, dicts with y and valid, in the window (rows, columns of the file's pixels);
    blocks: number of the block of time of each; echo: share of the valid pixels with echo; windows: of each sample,
    where they have windows of their own.
    """

    name: str
    samples: Sequence[dict[str, Tensor]]
    blocks: list[int]
    window: tuple[slice, slice]
    echo: float
    windows: Sequence[tuple[slice, slice]] = ()


def find_most_echo(blocks: list[EvaluationBlock], above: float = 0.0) -> tuple[EvaluationBlock, int]:
    """The test sample whose fields are drawn, its block and its number there: that with the largest share of y above a
    value."""
    share = {
        (number, k): float((sample["y"] > above).float().mean())
        for number, block in enumerate(blocks)
        for k, sample in enumerate(block.samples)
    }
    number, sample = max(share, key=share.get)
    return blocks[number], sample


def read_grid(config: RadarFiles, block: EvaluationBlock, sample: int) -> MapGrid:
    """Where the window of a sample of a block lies."""
    window = block.windows[sample] if block.windows else block.window
    with fd.open_dataset(resolve_path(config, block.name)) as dataset:
        return MapGrid.of(fd.to_reflectivity(dataset, config.var).raw[..., *window])


def tabulate_samples(blocks: list[EvaluationBlock], files: Mapping[str, Mapping[str, list[int]]]) -> ResultTable:
    """What was trained, validated and tested on."""
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
