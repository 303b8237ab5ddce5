# SPDX-License-Identifier: Apache-2.0
"""Training, validation and test parts of the fields of the INR study, and the test crops."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from fastds.studies.fields.crops import Crop, draw_crops
from fastds.studies.inr.config import DataConfig
from fastds.tasks.fields.config import DataConfig as TrainingData
from fastds.tasks.fields.samples import load_fields

_GAP = 8  # columns between the parts; the test part also keeps this distance from the last column
_TRAIN, _VALIDATION = 5 / 9, 7 / 45


def split_columns(columns: int) -> dict[str, list[int]]:
    """Divide the columns into training, validation and test, part -> [first, one after the last]."""
    train, validation = round(_TRAIN * columns), round(_VALIDATION * columns)
    first = train + _GAP
    test = first + validation + _GAP
    return {"train": [0, train], "validation": [first, first + validation], "test": [test, columns - _GAP]}


def make_training_data(config: DataConfig) -> TrainingData:
    """Make the data configuration of all trainings, including the test columns."""
    data = TrainingData(config.path, config.variables, level=config.level, vectors=config.vectors)
    return dataclasses.replace(data, **split_columns(load_fields(data).shape[3]))


def read_test_crops(config: DataConfig, data: TrainingData) -> tuple[Tensor, list[Crop]]:
    """Read the test fields (T, C, H, W) in their units and draw crops of them. Raises ValueError if the crops are too
    large."""
    fields = data.part(load_fields(data), data.test)
    try:
        return fields, draw_crops(tuple(fields.shape), config.crop, config.per_cell, seed=0)
    except ValueError as error:
        raise ValueError(f"data.crop: {error}") from None


def make_crop_labels(crops: list[Crop], together: int) -> np.ndarray:
    """Return (crops, 2), the group of times and the latitude band of each crop."""
    return np.array([(crop.time // together, crop.band) for crop in crops])
