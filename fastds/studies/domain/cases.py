# SPDX-License-Identifier: Apache-2.0
"""Held-out cases: error of a network relative to a baseline, and out-of-distribution score of the inputs."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastds import data as fd
from fastds import metrics
from fastds.data.radar.preparation import COARSENING_MODES
from fastds.data.samples.fields import choose_field, coarsen_fields, get_pressure_hpa
from fastds.inference.files import compute_mean_spacing
from fastds.inference.ood.score import OODReport, assess_inputs
from fastds.inference.ood.statistics import compute_field_statistics, compute_motion_statistics, compute_texture
from fastds.models.baselines import advection, interpolate, trilinear
from fastds.models.card import Network
from fastds.studies.common.radar import find_echo_window
from fastds.studies.radar import MARGIN, TEST_BLOCKS, Block, compute_errors, wrap_baseline, wrap_network
from fastds.tasks.fields.evaluation import compute_margin, make_coarse_and_fine, resize_bicubic
from fastds.tasks.humidity import pipeline as humidity
from fastds.tasks.humidity.evaluation import run_network
from fastds.tasks.nowcast import pipeline as nowcast
from fastds.tasks.nowcast.methods import pick_method
from fastds.tasks.nowcast.starts import ForecastCells, read_coarse_frames
from fastds.tasks.radar import pipeline as radar

RADARS = dict(TEST_BLOCKS) | {"radar_smhi_openmrg_20150827_5min.nc": (0, None, 1)}
# Files of RADARS in the training of nowcast-small, which are no cases of nowcasting networks.
_TRAINED = ("radar_fmi_20160928_5min.nc", "radar_knmi_20100826_5min.nc", "radar_meteonet_nw_20180312_5min.nc")
FORECAST = [f for f in RADARS if f not in _TRAINED]
# (multiple of a file's cadence, multiple of its grid spacing).
COARSER = ((1, 1), (2, 1), (3, 1), (6, 1), (1, 2), (1, 4), (2, 2), (3, 4))
_SIDE, _SAMPLES, _LEADS = 96, 3, 6
_ERA5 = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"
_NAM = "raw/grib/nam.t00z.awp21100.tm00.grib2"
# (file, variable of relative humidity, levels, held-out rows and columns). The level None is the only level of a file.
HUMIDITY = (
    (_ERA5, "r", (None,), np.s_[:176, 280:360]),
    ("meteonet_arpege_2m_NW_01deg_20180501_1h.nc", "r2m", (None,), np.s_[:56, 48:80]),
    ("era5_surface_025deg_conus_19950714T12.nc", "r2m", (None,), np.s_[:, :]),
    ("ecmwf_rh_plev_04deg_global_20240101T00.nc", "r", (925, 850, 500), np.s_[:, :]),
    (_NAM, "r_isobaricInhPa", tuple(range(1000, 50, -50)), np.s_[:, :]),
)


class Case(NamedTuple):
    """A held-out case.

    Attributes:
        label: description.
        block: label that dependent cases share, for the bootstrap.
        domain: out-of-distribution report of the inputs.
        ratio: squared error of the network divided by that of the baseline.
    """

    label: str
    block: str
    domain: OODReport
    ratio: float


def iter_radar_cases(network: Network, folder: pathlib.Path) -> Iterator[Case]:
    """Yield cases of an FC-ZSM network.

    The ratio of a case is the squared error of the network above 15 dBZ divided by the squared error of the baseline.
    The baseline is advection if the network adds its output to advection, else trilinear interpolation.
    """
    simple = advection if network.config.get("residual") == "advection" else trilinear
    for file, (start, stop, _) in RADARS.items():
        store = fd.FrameStore(fd.TimeBlock(str(folder / file), start, stop))
        spacing, cadence = _read_grid(folder / file)
        for interval, scale in COARSER:
            for mode in COARSENING_MODES if (interval, scale) == (1, 1) else ("dbz", "plain_dbz"):
                if min(store.shape[1:]) < 32 * scale or not len(store.triples(interval)):
                    continue
                triples = fd.EvaluationTriples(store, interval=interval, scale=scale, mode=mode)
                found = [_compute_radar_errors(network, simple, triples, k) for k in _sample_evenly(len(triples))]
                found = [one for one in found if one is not None]
                if found:
                    inputs, model, baseline = zip(*found, strict=True)
                    size = None if spacing is None else 2 * scale * spacing
                    domain = radar.assess_statistics(network.card, size, 2 * interval * cadence, list(inputs))
                    yield Case(f"{file}, {interval} x {scale}, {mode}", file, domain, sum(model) / sum(baseline))


def _compute_radar_errors(network: Network, simple: Callable, triples, place: int):
    """Compute the statistics of the input and the squared errors of the network and the baseline.

    The errors are those in the window with the largest echo area.

    Returns:
        (statistics, error of the network, error of the baseline), or None if less than 1 % of the input is echo.
    """
    one = triples[place]
    window = find_echo_window((one["x"] > 0).float().sum((0, 1)), _SIDE)
    fine = tuple(slice(2 * part.start, 2 * part.stop) for part in window)
    x, y = one["x"][..., *window], one["y"][..., *fine]
    valid = metrics.interior(one["valid"][..., *fine].all(0, keepdim=True), MARGIN).expand_as(y)
    if (x > 0).float().mean() < 0.01:
        return None
    block = Block("", 15.0, [{"x": x, "y": y, "valid": valid, "neighbours": (None, None)}], [0])
    model, baseline = (
        compute_errors(block, method)["mse_total"] for method in (wrap_network(network, 15.0), wrap_baseline(simple))
    )
    return compute_motion_statistics(x[:, 0]), model, baseline


def iter_nowcast_cases(network: Network, folder: pathlib.Path) -> Iterator[Case]:
    """Yield cases of a nowcasting network.

    The ratio of a case is the squared error of the network in dBZ divided by that of extrapolation, over at most six
    lead times.
    """
    methods = [pick_method(network)[0], pick_method("extrapolation")[0]]
    known, (low, high) = methods[0].known, (network.card.floor_dbz, network.card.ceiling_dbz)
    for file in FORECAST:
        spacing, cadence = _read_grid(folder / file)
        with fd.open_dataset(folder / file) as dataset:
            source = fd.to_reflectivity(dataset)
            for interval, scale in COARSER:
                steps = min(_LEADS, source.shape[0] // interval - known)
                if steps < 2:
                    continue
                sums, inputs = np.zeros(2), []
                for first in _sample_evenly(source.shape[0] - (known + steps - 1) * interval):
                    frames = [first + k * interval for k in range(known + steps)]
                    z = read_coarse_frames(source, frames, ForecastCells(scale, low))
                    echo = torch.from_numpy(np.nan_to_num(z[:known])) > low
                    z = z[:, *find_echo_window(echo.float().sum(0), 2 * _SIDE)].clip(low, high)
                    seen = compute_motion_statistics(fd.prepare(torch.from_numpy(z[known - 2 : known]), low, high))
                    valid = np.isfinite(z).all(0)
                    if min(z.shape[1:]) < 16 or not seen or not valid.any():
                        continue
                    inputs.append(seen)
                    made = (np.asarray(method(z[:known], steps)).clip(low, high) for method in methods)
                    sums += [np.square(y - z[known:])[:, valid].mean() for y in made]
                if inputs:
                    size = None if spacing is None else scale * spacing
                    domain = nowcast.assess_statistics(network.card, size, interval * cadence, inputs)
                    yield Case(f"{file}, {interval} x {scale}", file, domain, sums[0] / sums[1])


def iter_humidity_cases(network: Network, folder: pathlib.Path) -> Iterator[Case]:
    """Yield cases of a humidity generator.

    The ratio of a case is the squared error of the generator with zero noise divided by that of bicubic interpolation.
    """
    card, scale = network.card, network.config["scale"]
    for file, name, levels, where in HUMIDITY:
        for level in levels:
            with fd.open_dataset(folder / file) as dataset:
                field = choose_field(dataset, name, level)
                pressure = get_pressure_hpa(field)
                whole = torch.from_numpy(field.values[:2, *where].astype(np.float32)).clamp(0, 105)
            for coarser in (1, 2, 4):
                rows, columns = (n // (coarser * scale) * coarser * scale for n in whole.shape[1:])
                if min(rows, columns) < 8 * coarser * scale:
                    continue
                fine = coarsen_fields(whole[:, :rows, :columns], coarser, "mean")
                coarse = coarsen_fields(fine, scale, card.coarsening)
                x = (coarse - card.offset) / card.range
                ours = card.denormalise(run_network(network, x[None, :, None], noise="zero")[0, :, 0])
                ratio = _compute_mse(ours, fine) / _compute_mse(interpolate(coarse, scale, "bicubic", "center"), fine)
                domain = humidity.assess_statistics(card, pressure, [compute_texture(one) for one in coarse])
                at = "" if pressure is None else f" at {pressure:g} hPa"
                yield Case(f"{file}{at}, cells of {coarser}", f"{file}{at}", domain, ratio)


def iter_field_cases(network: Network, folder: pathlib.Path) -> Iterator[Case]:
    """Yield cases of an arbitrary-scale network.

    The ratio of a case is the squared error of the network divided by that of bicubic interpolation. For a network of
    r, t, u and z, it is the geometric mean of the ratios of the four variables. A network for any variable is evaluated
    on each of the four separately.
    """
    names = [variable["name"] for variable in network.card.input_variables]
    for label, whole in _read_four_variables(folder):
        by_variable = dict(zip("rtuz", whole.split(1, 1), strict=True)) if network.card.any_variable else {"": whole}
        for (variable, fields), coarser in itertools.product(by_variable.items(), (1, 2)):
            fine = torch.nn.functional.avg_pool2d(fields, coarser)
            for scale in (1.5, 2.0, 3.0, 4.0):
                if min(fine.shape[2:]) < 12 * scale:
                    continue
                x, truth = make_coarse_and_fine(fine, scale)
                size, edge = (truth.shape[2], truth.shape[3]), compute_margin(scale) - 2
                inner = (..., slice(edge, -edge), slice(edge, -edge))
                made = (network(x, size=size), resize_bicubic(x, size))
                ours, bicubic = ((y - truth)[inner].square().mean((0, 2, 3)) for y in made)
                ratio = float((ours / bicubic).log().mean().exp())
                what = f"{variable} of {label}" if variable else label
                domain = assess_inputs(network.card, inputs=[compute_field_statistics(x[0], names)])
                yield Case(f"{what}, cells of {coarser}, x{scale:g}", label, domain, ratio)


def _read_four_variables(folder: pathlib.Path) -> Iterator[tuple[str, Tensor]]:
    """Yield labels and fields (1, 4, H, W): held-out parts of ERA5, and NAM at 19 levels."""
    with fd.open_dataset(folder / _ERA5) as dataset:
        era5 = np.stack([dataset[name].squeeze().values for name in "rtuz"], 1).astype(np.float32)
    for time, first in ((1, 10), (3, 63), (5, 116)):
        part = era5[time : time + 1, :, first : first + 53, 272:360]
        yield f"ERA5 at 500 hPa, rows from {first}", torch.from_numpy(part.copy())
    with fd.open_dataset(folder / _NAM) as dataset:
        fields = [
            dataset[f"{name}_isobaricInhPa"] * factor
            for name, factor in (("r", 1), ("t", 1), ("u", 1), ("gh", 9.80665))
        ]
        for level in HUMIDITY[-1][2]:
            part = np.stack([field.sel(isobaricInhPa=level).values for field in fields])[None]
            yield f"NAM at {level} hPa", torch.from_numpy(part.astype(np.float32))


CASES = {
    "radar": iter_radar_cases,
    "nowcast": iter_nowcast_cases,
    "humidity": iter_humidity_cases,
    "fields": iter_field_cases,
}


def _read_grid(path: pathlib.Path) -> tuple[float | None, float]:
    """Return grid spacing in metres (None: unknown) and cadence in seconds of a radar file."""
    with fd.open_dataset(path) as dataset:
        source = fd.to_reflectivity(dataset)
        return compute_mean_spacing(source), source.cadence


def _sample_evenly(count: int) -> list[int]:
    """Return at most _SAMPLES evenly spaced indices below count."""
    return sorted({round(k) for k in np.linspace(0, count - 1, _SAMPLES)}) if count > 0 else []


def _compute_mse(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).square().mean())
