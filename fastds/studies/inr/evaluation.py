# SPDX-License-Identifier: Apache-2.0
"""Data, test crops and test protocols of the INR study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastds._options import OptionError
from fastds.studies.fields.crops import Crop, draw_crops
from fastds.studies.inr.config import DataConfig
from fastds.tasks.fields.back_projection import back_project
from fastds.tasks.fields.config import DataConfig as TrainingData
from fastds.tasks.fields.samples import load_fields

_GAP = 8  # columns between the parts; the test part also keeps this distance from the last column
_TRAIN, _VALIDATION = 5 / 9, 7 / 45


def split_columns(columns: int) -> dict[str, list[int]]:
    """Divide the columns into training, validation and test.

    Returns:
        A dictionary from the name of a part to [first column, column after the last].
    """
    train, validation = round(_TRAIN * columns), round(_VALIDATION * columns)
    first = train + _GAP
    test = first + validation + _GAP
    return {"train": [0, train], "validation": [first, first + validation], "test": [test, columns - _GAP]}


def make_training_data(config: DataConfig) -> TrainingData:
    """Make the data configuration of all trainings, including the test columns."""
    data = TrainingData(config.path, config.variables, level=config.level, vectors=config.vectors)
    columns: dict[str, Any] = split_columns(load_fields(data).shape[3])
    return dataclasses.replace(data, **columns)


def read_test_crops(config: DataConfig, data: TrainingData) -> tuple[Tensor, list[Crop]]:
    """Read the test fields (T, C, H, W) in their units and draw crops of them.

    Raises:
        ValueError: if the crops are too large.
    """
    fields = data.part(load_fields(data), data.test)
    try:
        return fields, draw_crops(tuple(fields.shape), config.crop, config.per_cell, seed=0)
    except ValueError as error:
        raise OptionError("data.crop", f": {error}") from None


def make_crop_labels(crops: list[Crop], together: int) -> np.ndarray:
    """Return (crops, 2): the number of the group of times, and the number of the latitude band, of each crop."""
    return np.array([(crop.time // together, crop.band) for crop in crops])


PROTOCOLS = {
    "clean": "from area means (protocol A)",
    "agreeing": "from area means, corrected to agree with them",
    "mirrored": "from area means, the mean of four mirrored outputs, corrected to agree",
    "degraded": "from degraded fields (protocol B)",
}
_MIRRORS = ((), (2,), (3,), (2, 3))  # axes that are flipped
Predict = Callable[[Tensor, tuple[int, int]], Tensor]


def make_protocols(
    predict: Predict, degrade: Callable, vectors: Sequence[int]
) -> dict[str, tuple[Predict, Callable | None]]:
    """Make the test protocols of a method.

    Args:
        predict: predict(x, size) downscales fields with the method.
        degrade: degradation of the inputs, see compute_crop_errors.
        vectors: channels of (u, v); -1 or empty if absent.

    Returns:
        A dictionary from the protocol to two functions: one downscales fields (B, C, h, w), the other makes the inputs
            and is None for area means.
    """

    def back_projected(x: Tensor, size: tuple[int, int]) -> Tensor:
        return back_project(predict(x, size), x)

    def mirrored(x: Tensor, size: tuple[int, int]) -> Tensor:
        outputs = [_mirror(predict(_mirror(x, axes, vectors), size), axes, vectors) for axes in _MIRRORS]
        total: Any = sum(outputs)
        return back_project(total / len(outputs), x)

    return {
        "clean": (predict, None), "agreeing": (back_projected, None), "mirrored": (mirrored, None),
        "degraded": (predict, degrade),
    }  # fmt: skip


def _mirror(x: Tensor, axes: tuple[int, ...], vectors: Sequence[int]) -> Tensor:
    """Flip the fields along axes; vector components along these axes change sign."""
    x = x.flip(axes)
    for axis, component in zip((3, 2), vectors, strict=False):
        if axis in axes and component >= 0:
            x[:, component] *= -1
    return x
