# SPDX-License-Identifier: Apache-2.0
"""Scores of forecasts and of the baselines by lead, from the same starts and on the same pixels."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from fastds.data import RAIN_THRESHOLDS, normalised_rates, open_dataset, prepare
from fastds.data.grid.times import text_of
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ, RadarWindows
from fastds.metrics import NowcastScores, mean_of_defined, spectral_ratio
from fastds.tasks.nowcast.methods import BASELINES, baseline
from fastds.tasks.nowcast.reading import Forecasts
from fastds.tasks.nowcast.starts import Timeline, coarse_fields
from fastds.tasks.nowcast.table import BANDS, WINDOW, NowcastTable
from fastds.tasks.radar.pairs import open_reflectivity

_NAMES = ("the observed file", "TRUTH")


def evaluate_nowcast_files(
    prediction: str | os.PathLike,
    truth: str | os.PathLike,
    *,
    observed: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
) -> NowcastTable:
    """Compare the files prediction (forecasts) and truth (the fields that came), see `evaluate_nowcast`.

    observed: the file the forecasts were made from; None: truth. var, z_r: as in evaluate_nowcast. progress: show a
    progress bar. Raises what open_dataset raises, too."""
    with open_dataset(prediction) as p, open_dataset(truth) as t:
        if observed is None:
            return evaluate_nowcast(p, t, var=var, z_r=z_r, progress=progress)
        with open_dataset(observed) as o:
            return evaluate_nowcast(p, t, observed=o, var=var, z_r=z_r, progress=progress)


def evaluate_nowcast(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    observed: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
    progress: bool = False,
) -> NowcastTable:
    """Compare forecasts, and the baselines from the same starts, with the fields that came.

    Scores are those of the DB-RNN paper on reflectivity between 0 and 60 dBZ, with the Z-R law of the forecasts, FSS
    and the CSI of nearby events in windows of 9 cells, and the power of the forecast over that of the truth by
    wavelength. Pixels count that are missing neither in the truth nor in the forecast.

    Args:
        prediction: as fastds.nowcast gives it, with one start or several.
        truth: the fields after the starts, on the grid the forecasts were made from; averaged to theirs where they are
            coarser.
        observed: the fields before the starts, for the baselines; None: truth holds them, too.
        var, z_r: as in fastds.data.to_reflectivity, for truth and observed.
        baselines: names of fastds.tasks.nowcast.methods.BASELINES; None: all, pysteps where it is installed.
        progress: show a progress bar.

    Returns: the NowcastTable, of starts with all fields.

    Raises: ValueError where grids do not fit or no start has all its fields.
    """
    forecasts = Forecasts(prediction)
    names = _installed() if baselines is None else list(baselines)
    name = f"{forecasts.name} (PRED)" if forecasts.name in names else forecasts.name
    comparison = Comparison([*names, name], forecasts.leads, forecasts.z_r)
    methods = {key: baseline(key) for key in names}
    known = max((method.known for method in methods.values()), default=1)
    fields = _Fields(forecasts, truth, truth if observed is None else observed, known, var, z_r)
    for number, before, after in _tracked(fields, progress):
        predicted = forecasts.fields(number)
        made = {key: method(before[-method.known :], len(after)) for key, method in methods.items()}
        comparison.add(np.where(np.isnan(predicted), np.nan, after), {**made, name: np.nan_to_num(predicted)})
    if not comparison.starts:
        raise ValueError(
            f"no start has {known} observed fields before it and all {len(forecasts.leads)} after it: forecasts start "
            f"from {text_of(forecasts.starts[0])}, the truth ends {text_of(fields.lines[1].times[-1])}"
        )
    left_out = len(forecasts.starts) - comparison.starts
    notes = [f"{left_out} of {len(forecasts.starts)} starts left out, fields before or after them are missing"]
    return comparison.table(notes * bool(left_out))


def _installed() -> list[str]:
    return [name for name in BASELINES if name != "pysteps" or importlib.util.find_spec("pysteps")]


class Comparison:
    """Sums of the scores of several methods, all for the same truth.

    methods: names. leads: seconds. z_r: (a, b), for rain rates.
    """

    def __init__(self, methods: Sequence[str], leads: Sequence[float], z_r: tuple[float, float]):
        self.leads, self.z_r = np.asarray(leads, float), z_r
        self.thresholds = normalised_rates(RAIN_THRESHOLDS, z_r, NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ)
        self.scores = {name: NowcastScores(self.thresholds, len(self.leads)) for name in methods}
        self.counts = {name: [] for name in methods}
        shape = len(self.leads), len(self.thresholds), 4
        self.windows = {name: np.zeros(shape) for name in methods}
        self.power = {name: [] for name in methods}
        self.starts = 0

    def add(self, truth: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        """Score the forecasts from one start: truth and every method's fields (n, h, w) in dBZ, truth NaN = missing."""
        self.starts += 1
        valid = torch.from_numpy(~np.isnan(truth))
        x = torch.from_numpy(prepare(truth, NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ))
        for name, z in fields.items():
            y = torch.from_numpy(prepare(np.where(valid, z, np.nan), NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ))
            before = self.scores[name].counts.copy()
            self.scores[name].add(y[None], x[None], valid[None])
            self.counts[name].append(self.scores[name].counts - before)
            self.windows[name] += _window_sums(y, x, valid, self.thresholds)
            ratios = [spectral_ratio(p, t, 0.0, BANDS) for p, t in zip(y, x, strict=True)]
            self.power[name].append([[ratio[band] for band in BANDS] for ratio in ratios])

    def table(self, notes: Sequence[str] = ()) -> NowcastTable:
        """The scores of every method by lead."""
        rows = {}
        for name, scores in self.scores.items():
            row = scores.by_frame()
            row["mse"] = row["mse"] * (NOWCAST_CEILING_DBZ - NOWCAST_FLOOR_DBZ) ** 2
            row["mae"] = row["mae"] * (NOWCAST_CEILING_DBZ - NOWCAST_FLOOR_DBZ)
            difference, total, hits, union = np.moveaxis(self.windows[name], -1, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                row["fss"], row["csi_near"] = 1.0 - difference / total, hits / union
            row["power"] = mean_of_defined(np.array(self.power[name]))
            rows[name] = row
        pixels = round(next(iter(self.scores.values())).pixels.mean() / max(self.starts, 1))
        counts = {name: np.array(parts) for name, parts in self.counts.items()}
        return NowcastTable(rows, self.leads, self.z_r, self.starts, pixels, counts, tuple(notes))


def window_scores(model, windows: RadarWindows, z_r: tuple[float, float], progress: bool = False) -> NowcastScores:
    """Scores over windows as in the tables of the DB-RNN paper: all m + n - 1 frames that the network predicts.

    model: with roll(frames, steps); its last output counts. windows: normalised as the model wants. z_r: for the
    thresholds. progress: show a progress bar. Returns NowcastScores with the n future frames as `future`; its
    means("all") is the paper's convention."""
    n = windows.index.shape[1] - windows.known
    thresholds = normalised_rates(RAIN_THRESHOLDS, z_r, windows.floor, windows.ceiling)
    scores = NowcastScores(thresholds, windows.known + n - 1, future=n)
    for sample in _tracked(windows, progress):
        with torch.inference_mode():
            y = model.roll(sample["x"][None], n)[-1]
        truth = torch.cat([sample["x"], sample["y"]])[None, 1:]
        scores.add(y, truth, sample["valid"][None, 1:])
    return scores


class _Fields:
    """Numbers of the starts, the known fields before them and the true ones after them, in dBZ on the forecasts'
    grid."""

    def __init__(self, forecasts: Forecasts, truth, observed, known: int, var, z_r):
        self.forecasts, self.known = forecasts, known
        datasets = zip((observed, truth), _NAMES, strict=True)
        self.sources = [open_reflectivity(dataset, var, z_r, what) for dataset, what in datasets]
        self.lines = [Timeline(s.raw[s.dims[0]].values, s.cadence) for s in self.sources]
        for source, what in zip(self.sources, _NAMES, strict=True):
            _check_grid(forecasts, source, what)

    def __len__(self) -> int:
        return len(self.forecasts.starts)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        interval = self.forecasts.leads[0]
        back = interval * np.arange(1 - self.known, 1)
        for number, start in enumerate(self.forecasts.starts):
            wanted = (back, self.forecasts.leads)
            places = [
                [line.find(line.seconds_at(start) + shift) for shift in shifts]
                for line, shifts in zip(self.lines, wanted, strict=True)
            ]
            if all(None not in part for part in places):
                yield number, *(self._read(source, part) for source, part in zip(self.sources, places, strict=True))

    def _read(self, source, places: list[int]) -> np.ndarray:
        return coarse_fields(source, places, self.forecasts.factor, self.forecasts.floor)


def _check_grid(forecasts: Forecasts, source, what: str) -> None:
    """ValueError where cells of a source do not make the cells of the forecasts, or lie elsewhere."""
    factor, grid = forecasts.factor, forecasts.variable.shape[-2:]
    if tuple(n // factor for n in source.shape[1:]) != grid:
        raise ValueError(
            f"the grids differ: PRED has {grid} cells of {factor} x {factor} pixels, {what} {source.shape[1:]} pixels"
        )
    for dim, own in zip(source.dims[1:], forecasts.variable.dims[-2:], strict=True):
        if dim in source.raw.coords and own in forecasts.variable.coords:
            there, here = (np.asarray(c.values, float) for c in (source.raw[dim], forecasts.variable[own]))
            there = there[: factor * len(here)].reshape(-1, factor).mean(1)
            if np.abs(there - here).max() > 0.1 * abs(here[1] - here[0]):
                raise ValueError(f"the grids differ: coordinate {own} of PRED and {dim} of {what} are other places")


def _window_sums(y, x, valid, thresholds: Sequence[float]) -> np.ndarray:
    """(n, thresholds, 4), over windows inside the grid: sums of (f_y - f_x)^2 and f_y^2 + f_x^2, f the shares of
    events, and numbers of windows with an event in both fields and in either."""
    window = min(WINDOW, *x.shape[-2:])
    sums = []
    for threshold in thresholds:
        p, t = (_window_shares((z >= threshold) & valid, window) for z in (y, x))
        parts = (p - t).square(), p.square() + t.square(), (p > 0) & (t > 0), (p > 0) | (t > 0)
        sums.append(torch.stack([part.sum((1, 2)).double() for part in parts], -1))
    return torch.stack(sums, 1).numpy()


def _window_shares(events: torch.Tensor, window: int) -> torch.Tensor:
    """Shares of events (n, H, W) in every window inside the grid, exact differences of counts from the corner."""
    counts = F.pad(events.cumsum(-2, dtype=torch.int32).cumsum(-1, dtype=torch.int32), (1, 0, 1, 0))
    rows = counts[:, window:] - counts[:, :-window]
    return (rows[..., window:] - rows[..., :-window]).double() / window**2


def _tracked(items, progress: bool) -> Iterator:
    if not progress:
        yield from items
        return
    from rich.progress import track

    yield from track(items, total=len(items), description="evaluating", transient=True)
