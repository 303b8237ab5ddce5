# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a network for any variable on held-out fields: `fastds study any-variable --data.path FOLDER`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds import data as fd
from fastds import models
from fastds.inference.execution import inference_context, resolve_execution
from fastds.models.baselines.interpolation import compute_interpolation_weights
from fastds.models.card import Network
from fastds.studies.command import Files
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import format_markdown
from fastds.studies.fields.study import INTERPOLATIONS as FIELD_INTERPOLATIONS
from fastds.studies.report import write_rows
from fastds.tasks.fields.back_projection import back_project
from fastds.tasks.fields.evaluation import compute_margin, make_coarse_and_fine
from fastds.training.command import read_command_line

_CONUS = "era5_surface_025deg_conus_19950714T12.nc"
_NAM = "raw/grib/nam.t00z.awp21100.tm00.grib2"
_ERA5 = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"
_EAST = np.s_[:, 288:360]  # validation columns of trainings on this file
# (label, file, variables, indices of times and levels, rows and columns). Only the last file is also used by a training
# configuration.
SOURCES = (
    ("ERA5 0.25°, United States", _CONUS, ("t2m", "d2m", "u10", "v10", "sp", "r2m"), (0,), np.s_[:, :]),
    ("ERA5 0.25°, British Isles", "era5_t2m_025deg_uk_201903_1h.grib", ("t2m",), (12, 300, 600), np.s_[:, :]),
    ("AROME 0.025°, France", "meteonet_arome_tp_NW_0025deg_20180501_1h.nc", ("tp",), (5, 10, 18), np.s_[:, :]),
    ("AROME 0.025°, France", "meteonet_arome_tp_NW_0025deg_20180501_1h.nc", ("orography",), (0,), np.s_[:, :]),
    ("NAM, levels", _NAM, tuple(f"{v}_isobaricInhPa" for v in ("t", "r", "u", "gh")), (3, 10, 16), np.s_[:, :]),
    ("ERA5 1°, 500 hPa, east", _ERA5, ("r", "t", "u", "z"), (0, 3, 6), _EAST),
)
_BLOCK = 16  # side in fine pixels of the blocks that the bootstrap draws


@dataclasses.dataclass
class StudyConfig:
    """Errors of a network and of interpolations when area means of fields are downscaled.

    Args:
        data: folder with the files of the fields.
        model: name of a shipped network or path of a safetensors file; the network reads one variable.
        scales: downscaling factors.
        known_coarsening: declare that the inputs are area means, as `fastds downscale --coarsened mean` does. All
            results are then corrected so that their means equal the inputs.
        threads: number of threads of torch; None leaves the number unchanged.
        leaderboard: file of leaderboard rows (see docs/models/leaderboard.md) to which the gains are added; None adds
            none.
    """

    data: Files
    model: str = "inr-any"
    scales: list[float] = dataclasses.field(default_factory=lambda: [1.5, 2.0, 3.0, 4.0])
    known_coarsening: bool = False
    threads: int | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study any-variable` into a StudyConfig."""
    about = "Errors of a network of any variable on fields that no training saw."
    return read_command_line(StudyConfig, arguments, "fastds study any-variable", about, {})


def study(config: StudyConfig) -> None:
    """Run `fastds study any-variable`: print the gains over bicubic interpolation and write leaderboard rows."""
    network: Network = models.load(config.model).eval()
    if network.in_channels != 1:
        raise ValueError(f"model {config.model} reads {network.in_channels} variables, expected a network of one")
    gains = {}
    with inference_context(network, resolve_execution(network, config.threads)), torch.inference_mode():
        for (label, name), fields in read_sources(pathlib.Path(config.data.path)):
            gains[label, name] = {
                scale: compute_gain(network, fields, scale, config.known_coarsening) for scale in config.scales
            }
    note = ", all corrected to agree with the input," if config.known_coarsening else ","
    print(
        f"Gain of PSNR over bicubic interpolation in dB{note} 95 % intervals over blocks of {_BLOCK} x {_BLOCK} points;"
    )
    print("in the last column over the best of four interpolations, at the worst factor:\n")
    head = ["fields", "variable", *(f"{scale:g}" for scale in config.scales), "least"]
    print(format_markdown(head, [[*key, *_cells(row)] for key, row in gains.items()]))
    if config.leaderboard is not None:
        write_rows(config, network.card.name, list(make_leaderboard_rows(gains)))


def _cells(row: dict[float, tuple[Estimate, float] | None]) -> list[str]:
    cells = ["" if one is None else one[0].format(2, "+") for one in row.values()]
    least = [one[1] for one in row.values() if one is not None]
    return [*cells, f"{min(least):+.2f}" if least else ""]


def make_leaderboard_rows(gains: dict) -> Iterator[dict]:
    """Yield a leaderboard row for each factor: the mean gain over all fields.

    The interval is obtained by resampling the fields.
    """
    for scale in next(iter(gains.values())):
        found = [row[scale][0].mean for row in gains.values() if row[scale] is not None]
        value = Estimate.from_samples(np.array(found), np.arange(len(found))[:, None])
        score = f"gain of PSNR over bicubic at factor {scale:g}, dB"
        row = {"task": "fields", "data": "mean of fields no training saw", "better": "higher"}
        yield row | {"score": score, "value": value, "cases": len(found)}


def read_sources(folder: pathlib.Path) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield ((label, variable), fields) for SOURCES; fields (T, 1, H, W) exclude times with missing values."""
    for label, file, names, which, where in SOURCES:
        with fd.open_dataset(folder / file) as dataset:
            for name in names:
                values = dataset[name].values.astype(np.float32)
                values = values.reshape(-1, *values.shape[-2:])[list(which)][:, *where]
                values = values[np.isfinite(values).all((1, 2))]
                if len(values):
                    yield (label, name), torch.from_numpy(values)[:, None]


def compute_gain(
    network: Network, fields: Tensor, scale: float, known_coarsening: bool = False
) -> tuple[Estimate, float] | None:
    """Compute the gain in PSNR of a network over interpolation when area means are downscaled.

    Args:
        network: network of one variable, called as network(x, size=size).
        fields: (T, 1, H, W) fine fields.
        scale: downscaling factor.
        known_coarsening: see StudyConfig.

    Returns:
        Gain over bicubic interpolation (a = -0.5) with its 95 % interval, and gain over the best of four
            interpolations, both in dB. None if the fields are too small.
    """
    if min(fields.shape[2:]) < 2 * compute_margin(scale) + _BLOCK:
        return None
    x, truth = make_coarse_and_fine(fields, scale)
    size = tuple(truth.shape[2:])
    methods = {"": lambda x, size: network(x, size=size)} | INTERPOLATIONS
    made = {name: method(x, size) for name, method in methods.items()}
    errors_of_methods = {
        name: _errors(back_project(y, x) if known_coarsening else y, truth, scale) for name, y in made.items()
    }
    errors_of_network = errors_of_methods.pop("")

    def decibel(weight: np.ndarray) -> np.ndarray:
        return 10 * np.log10((weight @ errors_of_methods["bicubic"]) / (weight @ errors_of_network))

    least = 10 * np.log10(min(errors.sum() for errors in errors_of_methods.values()) / errors_of_network.sum())
    return Estimate.from_statistic(decibel, np.arange(len(errors_of_network))[:, None]), float(least)


def _errors(made: Tensor, truth: Tensor, scale: float) -> np.ndarray:
    """Average squared errors over the times and over blocks of _BLOCK x _BLOCK pixels."""
    margin = compute_margin(scale)
    squared = (made - truth).double().square().mean((0, 1))[margin:-margin, margin:-margin]
    return F.avg_pool2d(squared[None], _BLOCK).flatten().numpy()


def resize_lanczos(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, H, W) to the grid `size` with a Lanczos kernel."""
    rows, columns = (
        torch.from_numpy(
            compute_interpolation_weights((np.arange(fine) + 0.5) * (n / fine) - 0.5, n, "lanczos").toarray()
        )
        for fine, n in zip(size, x.shape[2:], strict=True)
    )
    return (rows @ x.double() @ columns.T).float()


INTERPOLATIONS = FIELD_INTERPOLATIONS | {"lanczos": resize_lanczos}
