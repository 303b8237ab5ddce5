# SPDX-License-Identifier: Apache-2.0
"""Comparison of ensemble nowcasts with those of pysteps on the test radars: `fastds study nowcast --members 24`."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import nn

from fastds.data import open_dataset, reflectivity_to_rate, to_reflectivity
from fastds.data.packages import require
from fastds.models import load
from fastds.models.card import Network
from fastds.models.weight_files import read_digest
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.runs import StudyFolder
from fastds.studies.common.tables import ResultTable
from fastds.tasks.nowcast.ensemble_scores import RATES, EnsembleRows, EnsembleSums
from fastds.tasks.nowcast.methods import BASELINES, pick_method
from fastds.tasks.nowcast.pipeline import NowcastPipeline, Options
from fastds.tasks.nowcast.starts import ForecastCells, read_coarse_frames
from fastds.tasks.nowcast.windows import WET_RATE


class Radar(NamedTuple):
    """Options of one radar file.

    Attributes:
        every: frames from one initialization time to the next.
        steps: number of forecast frames.
    """

    every: int
    steps: int


# Held-out radar files: neither nowcast-small nor its error model was fitted to them.
RADARS = {
    "radar_mch_20160711_5min.nc": Radar(4, 12),
    "radar_bom_melbourne_20180616_6min.nc": Radar(3, 10),
    "radar_opera_20180824_15min.nc": Radar(2, 8),
    "radar_dpc_north_20250416_5min.nc": Radar(18, 12),
    "radar_dpc_sardinia_20250416_5min.nc": Radar(18, 12),
    "radar_dwd_yw_20170816_5min.nc": Radar(3, 6),
}
OURS, MEAN, STEPS = "members", "their mean forecast", "STEPS"
SINGLES = (SPROG, EXTRAPOLATION, ANVIL, LINDA) = ("S-PROG", "extrapolation", "ANVIL", "LINDA")
MLCAST = "MLCast"
ENSEMBLES = (OURS, STEPS)
MINUTES = (5, 10, 15, 20, 30, 45, 60, 90, 120)
_KNOWN, _RATE = 5, RATES.index(2.0)
_DRY_DB = -15.0  # value of pysteps' fields where it does not rain


class Start(NamedTuple):
    """Inputs and truth of one forecast.

    Attributes:
        dataset: all frames up to the initialization time.
        rain: the last three frames in mm/h on the forecast grid, as input of pysteps.
        cadence: minutes between forecast frames.
        factor: cell size of the forecast grid over that of the file.
        truth: (n, h, w) in mm/h, NaN where missing.
    """

    dataset: xr.Dataset
    rain: np.ndarray
    cadence: float
    factor: int
    truth: np.ndarray


def compare(
    path: str, model: str, output: str, members: int, starts: int | None, window: int, mlcast: str | None
) -> list[ResultTable]:
    """Compare ensembles on all radars.

    Scores of every start are stored in the folder `output`; a later run computes only those that are missing.

    Args:
        path: folder with the radar files.
        model: name or path of the model.
        output: folder of the scores.
        members: number of ensemble members.
        starts: largest number of initialization times of a file; None uses all.
        window: side in pixels of the square with the largest echo area, in which forecasts are made.
        mlcast: weights of MLCast's network, or None.

    Returns:
        Tables over all radars, and CRPS by radar.

    Raises:
        ImportError: if pysteps or scikit-image is missing; raised before the first forecast.
    """
    require("pysteps scikit-image", "nowcasts of pysteps, LINDA among them,")
    methods = _make_methods(model, members, mlcast)  # raises errors of unknown models, with the known ones
    folder = StudyFolder(output, _list_options(model, members, window, mlcast))
    found: dict[str, list[tuple[str, dict]]] = {name: [] for name in methods}
    for file, radar in RADARS.items():
        with open_dataset(pathlib.Path(path) / file) as dataset:
            dataset = _crop_to_echo(dataset, window).load()
        count = dataset.sizes["time"] - radar.steps
        for frame in list(range(_KNOWN - 1, count, radar.every))[:starts]:
            start = _make_start(dataset, model, frame, radar.steps)
            for name, make in methods.items():
                place = f"scores/{file.removesuffix('.nc')}-{frame}-{name.replace(' ', '-')}"
                found[name].append((file, folder.load_or_compute(place, functools.partial(_score, make, start))))
        print(f"{file}: {len([one for one, _ in found[OURS] if one == file])} starts", flush=True)
    tables = [*_tabulate_by_lead(found), _tabulate_by_radar(found)]
    for number, table in enumerate(tables):
        table.write(folder.path, f"table-{number + 1}")
    return tables


def _list_options(model: str, members: int, window: int, mlcast: str | None) -> dict[str, Any]:
    """Return the options on which scores depend, with the checksums of all weights. See compare."""
    options = {"model": model, "members": members, "window": window} | ({} if mlcast is None else {"mlcast": mlcast})
    networks = [name for name in (model, mlcast) if name is not None and name not in BASELINES]
    return options | {"weights": {name: read_digest(name) for name in networks}}


def _crop_to_echo(dataset: xr.Dataset, side: int) -> xr.Dataset:
    """Crop a dataset to the square with the largest echo area."""
    source = to_reflectivity(dataset)
    echo = np.mean([source.frames([k])[0] > 0 for k in range(0, source.shape[0], 4)], 0)
    sums = np.pad(echo.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = (min(side, size) for size in echo.shape)
    inside = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return dataset.isel({source.dims[1]: slice(top, top + h), source.dims[2]: slice(left, left + w)})


def _make_start(dataset: xr.Dataset, model: str, frame: int, steps: int) -> Start:
    known = dataset.isel(time=slice(0, frame + 1))
    job = NowcastPipeline(model, to_reflectivity(known), Options(steps=steps))
    frames = list(range(frame - 2, frame + 1 + steps))
    z = read_coarse_frames(to_reflectivity(dataset), frames, ForecastCells(job.factor, 0.0))
    rain = np.where(np.isnan(z), np.nan, reflectivity_to_rate(np.nan_to_num(z), job.z_r, 0.0))
    truth = np.where(np.isnan(rain[2]), np.nan, rain[3:])
    return Start(known, np.nan_to_num(rain[:3]), job.leads[0] / 60, job.factor, truth)


def _make_methods(model: str, members: int, mlcast: str | None) -> dict[str, Callable[[Start], np.ndarray]]:
    """Return the compared methods as name -> function from a Start to forecasts (M, n, h, w) in mm/h."""
    method, _ = pick_method(model)
    smooth = method.to_ensemble_mean() is not method  # mean forecasts, if the method has them

    def forecast(start: Start, model: str | nn.Module = model, **options: Any) -> np.ndarray:
        options |= {"coarsen": start.factor, "interval": f"{start.cadence:g}min", "steps": len(start.truth)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            job = NowcastPipeline(model, to_reflectivity(start.dataset), Options(**options))
            name = next(iter(job.variables))
            return job.compute_all(False, None)[name].values

    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration
        from pysteps import nowcasts

    def peer(name: str, linear: bool = False, **options: Any) -> Callable[[Start], np.ndarray]:
        return lambda start: _run_pysteps(nowcasts.get_method(name), start, linear, **options)

    threshold = 10 * np.log10(WET_RATE)
    mlcast_network: Network = None if mlcast is None else load(mlcast)

    def forecast_mlcast(start: Start) -> np.ndarray:
        mlcast_network.card.input_steps = min(
            mlcast_network.card.input_steps, start.dataset.sizes["time"]
        )  # the network takes up to 6 frames, the first start has 5
        return forecast(start, mlcast_network, members=members)

    return {
        OURS: lambda start: forecast(start, members=members),
        MEAN: lambda start: _duplicate(forecast(start, smooth=smooth)),
        STEPS: peer("steps", n_ens_members=members, kmperpixel=1.0, precip_thr=threshold, seed=1),
        SPROG: peer("sprog", precip_thr=threshold),
        EXTRAPOLATION: peer("extrapolation"),
        ANVIL: peer("anvil", linear=True, ar_order=1),  # ANVIL of order 1 needs three frames
        LINDA: peer("linda", linear=True, kmperpixel=1.0, add_perturbations=False),
        **({} if mlcast_network is None else {MLCAST: forecast_mlcast}),
    }


def _duplicate(fields: np.ndarray) -> np.ndarray:
    """Stack a single forecast twice, which makes its CRPS equal to its mean absolute error."""
    return np.stack([fields, fields])


def _run_pysteps(method: Callable, start: Start, linear: bool, **options: Any) -> np.ndarray:
    """Forecast with a method of pysteps, called as in its examples.

    The motion is by Lucas-Kanade from the last three frames. Areas advected from outside the domain are dry.

    Args:
        method: nowcasting function of pysteps.
        start: the inputs.
        linear: pass rain rates in mm/h; otherwise dB of mm/h.
        options: further arguments of the method.

    Returns:
        Forecasts (M, n, h, w) in mm/h.
    """
    from pysteps import motion

    rain = np.where(start.rain < WET_RATE, 0, start.rain)
    decibel = np.where(rain > 0, 10 * np.log10(np.maximum(rain, WET_RATE)), _DRY_DB).astype(float)
    if "kmperpixel" in options:
        options = {**options, "timestep": start.cadence}
    given = rain.astype(float) if linear else decibel
    several = len(options) > 0
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        velocity = motion.get_method("lucaskanade")(decibel)
        made = method(given if several else given[-1], velocity, len(start.truth), **options)
    made = np.nan_to_num(made, nan=0.0 if linear else _DRY_DB)
    rates = made if linear else np.where(made >= 10 * np.log10(WET_RATE), 10 ** (made / 10), 0)
    rates = rates.astype(np.float32)
    return rates if rates.ndim == 4 else _duplicate(rates)


def _score(make: Callable[[Start], np.ndarray], start: Start) -> dict:
    """Forecast from one start; return the sums from which scores are computed, and the CPU time in seconds."""
    began = time.process_time()
    fields = make(start)
    seconds = time.process_time() - began
    sums = EnsembleSums(len(fields), 60 * start.cadence * np.arange(1, len(start.truth) + 1))
    for lead, truth in enumerate(start.truth):
        sums.add(lead, fields[:, lead], truth)
    return {
        "seconds": seconds,
        "members": len(fields),
        "minutes": (sums.leads / 60).tolist(),
        **{name: part.tolist() for name, part in sums.sums.items()},
    }


def _sum_scores(starts: list[dict], minutes: float) -> EnsembleRows | None:
    """Compute the scores at one lead time over all starts; None if no start has this lead time."""
    total = None
    for one in starts:
        if minutes in one["minutes"]:
            lead = one["minutes"].index(minutes)
            total = total or EnsembleSums(one["members"], [60 * minutes])
            for name, part in total.sums.items():
                part += np.array(one[name])[lead]
    return None if total is None else total.rows()


def _tabulate_by_lead(found: Mapping[str, list[tuple[str, dict]]]) -> list[ResultTable]:
    """Tabulate CRPS, calibration, skill at 2 mm/h and CPU time over all starts of all radars."""
    crps: list[Sequence] = []
    calibration, skill = [], []
    names = tuple(found)
    others = names[1:2] + names[3:]
    for minutes in MINUTES:
        rows: dict[str, Any] = {
            name: _sum_scores([one for _, one in starts], minutes) for name, starts in found.items()
        }
        if rows[OURS] is None:
            continue
        ours, steps = (_list_crps(found[name], minutes) for name in ENSEMBLES)
        labels = np.arange(len(ours))[:, None]
        singles = (f"{_list_crps(found[name], minutes).mean():.4f}" for name in others)
        difference = Estimate.from_samples(ours - steps, labels)
        lead = f"{minutes:g}"
        crps.append((lead, str(len(ours)), f"{ours.mean():.4f}", f"{steps.mean():.4f}", difference, *singles))
        judged = ("spread_skill", "flatness", "reliability", "calibration")
        parts = [np.atleast_2d(rows[name].rows[score])[0] for score in judged for name in ENSEMBLES]
        calibration.append((lead, *(f"{part[_RATE if len(part) > 1 else 0]:.3f}" for part in parts)))
        skills = [(s, rows) for s in ("csi", "fss")] + [("csi_matched", {name: rows[name] for name in ENSEMBLES})]
        fields = [f"{row.rows[score][0, _RATE]:.3f}" for score, some in skills for row in some.values()]
        skill.append((lead, *fields, *(f"{rows[name].rows['rain'][0]:.2f}" for name in ENSEMBLES)))
    pairs = tuple(f"{score}: {name}" for score in ("spread/skill", "rank", "largest", "mean") for name in ENSEMBLES)
    return [
        ResultTable(
            "CRPS in mm/h (of single fields the mean absolute error), mean over starts, and members less STEPS with "
            "its interval",
            ("minutes", "starts", *ENSEMBLES, "difference", *others), crps, 4, "+",
        ),
        ResultTable(
            "Spread over skill, largest difference of the rank histogram from flat, and difference of forecast "
            "probability and frequency at 2 mm/h, largest and mean", ("minutes", *pairs), calibration,
        ),
        ResultTable(
            "CSI of the mean and FSS (of ensembles of their probabilities) at 2 mm/h, and mean rain over the truth's",
            (
                "minutes", *(f"{s}: {n}" for s in ("CSI", "FSS") for n in names),
                *(f"{s}: {n}" for s in ("CSI, matched", "rain") for n in ENSEMBLES),
            ),
            skill,
        ),
        ResultTable("Seconds of the processor a start", names, [tuple(map(_format_seconds, found.values()))]),
    ]  # fmt: skip


def _list_crps(starts: list[tuple[str, dict]], minutes: float) -> np.ndarray:
    """Return the CRPS of every start that has this lead time."""
    rows = [_sum_scores([one], minutes) for _, one in starts]
    return np.array([row.rows["crps"][0] for row in rows if row is not None])


def _format_seconds(starts: list[tuple[str, dict]]) -> str:
    return f"{np.mean([one['seconds'] for _, one in starts]):.1f}"


def _tabulate_by_radar(found: Mapping[str, list[tuple[str, dict]]]) -> ResultTable:
    """Tabulate the ratio of the CRPS of the ensemble to the CRPS of STEPS by radar."""
    lines = []
    for file in RADARS:
        pairs = [[part for part in found[name] if part[0] == file] for name in ENSEMBLES]
        ratios = (
            _list_crps(pairs[0], m).mean() / _list_crps(pairs[1], m).mean() if len(_list_crps(pairs[0], m)) else np.nan
            for m in MINUTES
        )
        lines.append((file, str(len(pairs[0])), *("-" if np.isnan(ratio) else f"{ratio:.3f}" for ratio in ratios)))
    return ResultTable(
        "CRPS of the members over that of STEPS by radar and minutes", ("file", "starts", *map(str, MINUTES)), lines
    )
