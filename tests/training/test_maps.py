# SPDX-License-Identifier: Apache-2.0
"""Tests of the maps of a validation sample in TensorBoard."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.support.training_runs import arguments

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")
pytest.importorskip("tensorboard", reason="needs TensorBoard (extra 'train')")

from tensorboard.backend.event_processing import event_accumulator as events

from fastds.training import trainer
from fastds.training.command import main
from fastds.training.maps import TAG, SampleMaps, SampleRow, draw_sample, select_rows

UNITS = {"radar": "dBZ", "nowcast": "dBZ", "humidity": "%", "fields": "%"}


def read_pictures(folder):
    """Return the pictures of a run by step."""
    found = events.EventAccumulator(str(folder / "tensorboard"), {events.IMAGES: 0})
    found.Reload()
    return {one.step: one.encoded_image_string for one in found.Images(TAG)}


@pytest.mark.parametrize("task", UNITS)
def test_every_validation_writes_maps_of_a_sample(files, tmp_path, monkeypatch, task):
    written, write = [], SampleMaps.write
    monkeypatch.setattr(SampleMaps, "write", lambda self, step: (written.append(self.rows), write(self, step))[1])
    assert main(arguments(files, task, tmp_path / "o")) == 0
    pictures = read_pictures(tmp_path / "o")
    assert list(pictures) == pd.read_csv(tmp_path / "o" / "validation.csv").step.tolist() == [4, 8]
    with Image.open(io.BytesIO(pictures[8])) as picture:
        assert picture.mode == "RGB" and picture.width > 600
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20  # fields, not an empty figure
    first, second = written
    for before, row in zip(first, second, strict=True):
        assert row.attrs["units"] == UNITS[task] and row.output.shape == row.truth.shape
        assert torch.equal(row.truth.nan_to_num(), before.truth.nan_to_num())  # the same sample
        assert torch.equal(row.truth.isnan(), row.output.isnan())
    assert second[0].truth.nan_to_num().max() > 1
    pairs = zip(first, second, strict=True)
    assert any(not torch.equal(a.output.nan_to_num(), b.output.nan_to_num()) for a, b in pairs)  # other weights
    inputs = [row.input for row in second if row.input is not None]
    assert len(inputs) == {"radar": 2, "nowcast": 1, "humidity": 2, "fields": 1}[task]
    factor = {"radar": 2, "nowcast": 1, "humidity": 2, "fields": 2}[task]
    assert all(one.shape[0] * factor == second[0].truth.shape[0] for one in inputs)
    if task in ("radar", "humidity"):
        row = second[0]
        blocks = row.truth.unfold(0, 2, 2).unfold(1, 2, 2)
        expected = blocks[..., 0, 0] if task == "humidity" else blocks.mean((2, 3))
        there = ~expected.isnan()
        close = torch.isclose(row.input[there], expected[there], atol=1e-3 if task == "humidity" else 3.0)
        assert close.float().mean() > 0.9


def test_without_tensorboard_nothing_is_drawn(files, tmp_path, monkeypatch):
    made = trainer._make_loggers
    monkeypatch.setattr(trainer, "_make_loggers", lambda output: made(output)[:1])
    monkeypatch.setattr(SampleMaps, "__init__", lambda self, writers: pytest.fail("maps without a log of pictures"))
    assert main(arguments(files, "fields", tmp_path / "o", max_steps=1)) == 0


def test_rows_of_a_quantity_share_a_colour_bar_and_missing_values_are_grey():
    field = torch.linspace(0, 50, 64).reshape(8, 8)
    field[0, 0] = torch.nan
    rows = [SampleRow(name, field, field, None, {"units": "dBZ"}) for name in "ab"]
    rows.append(SampleRow("c", field + 273, field + 273, field[::2, ::2] + 273, {"units": "K"}, "t"))
    figure = draw_sample(rows, "step 3")
    images = [axes.images[0] for axes in figure.axes if axes.images]
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert len(images) == 7 and "reflectivity (dBZ)" in labels and {"a", "b", "c"} <= set(labels)
    assert len(figure.axes) == 9 + 2  # two colour bars
    assert images[0].get_array().mask[0, 0]
    assert figure.get_suptitle() == "step 3"


def test_writing_without_a_sample_writes_nothing():
    SampleMaps([None]).write(1)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (7, [0, 2, 4, 6])])
def test_at_most_four_rows_are_drawn(count, expected):
    assert select_rows(count) == expected
