# SPDX-License-Identifier: Apache-2.0
"""A program of a user, which mypy checks in tests/repository/test_types.py."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

import fastds
from fastds import data, metrics, models, ops, plot
from fastds.data import RadarTriples, coarsen_dataset, open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.nn import Conv3x3, ConvLSTMCell, DeformConv2d, GuidedDeformConv2d, PixelShuffleUpsample


class Finer(nn.Module):
    """Upscales the last of T radar fields: (B, T, 1, H, W) -> (B, 1, 2H, 2W)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.embed = Conv3x3(1, channels)
        self.memory = ConvLSTMCell(channels, channels)
        self.align = GuidedDeformConv2d(channels, channels, offset_groups=4)
        self.deform = DeformConv2d(channels, channels, 3, padding=1)
        self.up = PixelShuffleUpsample(channels, 1, upscale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.embed.forward(x.flatten(0, 1), activation="leaky_relu").unflatten(0, x.shape[:2])
        states, last = self.memory.sequence(maps)
        assert_type(states, Tensor)
        assert_type(last, tuple[Tensor, Tensor])
        y = self.align.forward(maps[:, -1], states[:, -1], activation="leaky_relu")
        return assert_type(self.up.forward(y), Tensor)


def files(source: Path, target: str) -> None:
    truth = assert_type(synthetic_event(seed=1, frames=5, shape=(128, 128)), xr.Dataset)
    fine = assert_type(open_dataset(source), xr.Dataset)
    coarse = assert_type(coarsen_dataset(truth, factor=2, every=2), xr.Dataset)
    assert_type(save_dataset(data.add_history(fine, "checked"), target), Path)
    reflectivity = to_reflectivity(coarse, z_r=(200.0, 1.6))
    assert_type(reflectivity.field, xr.DataArray)
    frames = assert_type(reflectivity.frames(slice(None)), np.ndarray)
    assert_type(data.prepare(frames, floor=15.0), np.ndarray)
    assert_type(data.prepare(torch.from_numpy(frames)), Tensor)
    samples = RadarTriples([source, truth], crop=32, samples=8)
    assert_type(samples[0], dict[str, Tensor])


def verbs(names: list[str], paths: list[Path]) -> None:
    assert_type(fastds.downscale(None, names), xr.Dataset)
    assert_type(fastds.nowcast(None, paths, steps=2), xr.Dataset)


def networks(x: Tensor) -> None:
    network = assert_type(models.create("fczsm-small"), nn.Module)
    shipped: nn.Module = fastds.load("fczsm-small")
    models.save(shipped, Path("weights.safetensors"))
    assert_type(models.load_card("fczsm-small").space_factor, int | None)
    assert_type(models.available(pretrained=True), list[str])
    assert_type(models.FCZSM(num_features=16, offset_groups=2).forward(x), Tensor)
    optimizer = torch.optim.Adam([*network.parameters(), *Finer().parameters()])
    optimizer.step()


def kernels(x: Tensor, weight: Tensor, offset: Tensor, c: Tensor) -> None:
    assert_type(ops.conv3x3(x, weight, activation="relu", upscale_factor=2), Tensor)
    assert_type(ops.deform_conv2d(x, offset, weight, stride=2, padding=(1, 1)), Tensor)
    assert_type(ops.pixel_shuffle(x, 2), Tensor)
    assert_type(ops.lstm_gates(x, c), tuple[Tensor, Tensor])
    assert_type(ops.conv_lstm_cell(x, None, c, weight), tuple[Tensor, Tensor])
    grid = assert_type(ops.GridSpec.cells((48, 48), (100, 100)), ops.GridSpec)
    assert_type(ops.inr_query(x, grid), Tensor)


def scores(prediction: Tensor, truth: Tensor, members: Tensor) -> None:
    assert_type(metrics.radar_errors(prediction, truth), dict[str, float])
    assert_type(metrics.csi(prediction, truth, threshold=30.0), float)
    assert_type(metrics.mse_total(1.0, 2.0), float)
    assert_type(metrics.rank_histogram(members, truth), list[float])
    series = metrics.daily_series(prediction, truth)
    figure = assert_type(plot.draw_daily_series([1, 2], {"ours": series["mse"]}, "MSE"), Figure)
    plot.draw_field(figure.subplots(), truth.numpy(), scale="nws")
    plot.save_png(figure, "mse.png")
