# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled fields and of the baselines against the truth, on the same pixels, as a table."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from fastds.data import coarsen, coarsen_mask, open_dataset, prepare, refine_mask, restore, to_reflectivity
from fastds.data.output import coarsen_with_weak_echo
from fastds.data.preparation import CEILING_DBZ
from fastds.metrics import EVALUATION_FLOORS, fss, interior, radar_errors, spectral_ratio
from fastds.models.baselines import advection, bicubic, trilinear

THRESHOLDS_DBZ = (15.0, 30.0, 40.0)
FSS_WINDOW = 9
FINE_BAND = (2.0, 4.0)
BASELINES = {"trilinear": trilinear, "bicubic": bicubic, "advection": advection}
_SPACE_FACTOR = 2
# SSIM and FSS come from packages of the extra "verify"; without them the table says so and has "-" in their places.
_HAS_TORCHMETRICS, _HAS_SCORES = (importlib.util.find_spec(name) is not None for name in ("torchmetrics", "scores"))


@dataclasses.dataclass(frozen=True)
class EvaluationTable:
    """Scores by method, method -> column -> number, and how they were made.

    Columns for each floor f in dBZ: mse_total_f, mse_t2_f, mse_t13_f (dBZ^2), ssim_f; csi_q and fss_q for each
    threshold q in dBZ; spectrum (power over the truth's at wavelengths of 2 to 4 pixels); recoarsened_rmse (dBZ, the
    output's outer frames averaged back against the input). t2 = frames between the input times, t13 = frames at the
    input times.
    """

    rows: dict[str, dict[str, float]]
    pairs: int
    pixels: int
    notes: tuple[str, ...] = ()

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per method, by a temporary name."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        columns = list(next(iter(self.rows.values())))
        try:
            with open(temporary, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["method", *columns])
                writer.writerows([name, *(f"{row[c]:.6g}" for c in columns)] for name, row in self.rows.items())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def print(self, console=None) -> None:
        """Print the tables with rich on a console (default: standard output)."""
        from rich.console import Console

        console = console or Console()
        for floor in EVALUATION_FLOORS:
            console.print(self._error_table(floor))
        console.print(self._skill_table())
        console.print(
            f"{self.pairs} pairs of input frames, {self.pixels} valid fine pixels a frame on average. t2: between the "
            "input times, t1+t3: at the input times. "
            f"FSS in windows of {FSS_WINDOW} pixels; detail: power at wavelengths of 2 to 4 pixels over the truth's; "
            "refit: rms of the output averaged back minus the input.",
            style="dim",
        )
        for note in self.notes:
            console.print(note, style="dim")

    def _error_table(self, floor: float):
        key = f"{floor:g}"
        table = _table(
            f"Errors above {key} dBZ", ("method", "MSE total dBZ²", "vs trilinear", "MSE t2", "MSE t1+t3", "SSIM")
        )
        reference = self.rows["trilinear"][f"mse_total_{key}"]
        for name, row in self.rows.items():
            total = row[f"mse_total_{key}"]
            change = f"{100 * (total / reference - 1):+.1f} %" if reference > 0 else "-"
            numbers = [row[f"{c}_{key}"] for c in ("mse_t2", "mse_t13", "ssim")]
            table.add_row(name, _text(total), "" if name == "trilinear" else change, *map(_text, numbers))
        return table

    def _skill_table(self):
        heads = [
            (f"{score} {q:g}" if q == THRESHOLDS_DBZ[0] else f"{q:g}")
            for score in ("CSI", "FSS")
            for q in THRESHOLDS_DBZ
        ]
        title = "Skill at " + ", ".join(f"{q:g}" for q in THRESHOLDS_DBZ) + " dBZ, detail, fit to the input"
        table = _table(title, ("method", *heads, "detail", "refit dB"))
        keys = [f"{score}_{q:g}" for score in ("csi", "fss") for q in THRESHOLDS_DBZ] + ["spectrum", "recoarsened_rmse"]
        for name, row in self.rows.items():
            table.add_row(name, *(_text(row[k]) for k in keys))
        return table


def _text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _table(title: str, heads: tuple[str, ...]):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    return table


def evaluate_files(
    prediction: str | os.PathLike,
    truth: str | os.PathLike,
    *,
    coarse: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Compare two files, see `evaluate`; coarse: the file that was downscaled. Raises what open_dataset raises, too."""
    with open_dataset(prediction) as p, open_dataset(truth) as t:
        if coarse is None:
            return evaluate(p, t, var=var, z_r=z_r, progress=progress)
        with open_dataset(coarse) as c:
            return evaluate(p, t, coarse=c, var=var, z_r=z_r, progress=progress)


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Compare downscaled fields and the baselines with the truth, pair of input frames by pair of input frames.

    prediction, truth: datasets on the same fine grid; truth holds every time of the prediction between the input times
    used.
    coarse: the dataset that was downscaled; None: truth averaged 2 x 2 as by coarsen_dataset, at every second time.
    var, z_r: as in fastds.data.to_reflectivity, for all datasets. progress: show a progress bar.
    Returns the EvaluationTable. Raises ValueError where grids or times do not fit or no pair of frames is common to
    all.
    """
    source = _Triples(prediction, truth, coarse, var, z_r)
    scores = {name: _Scores() for name in (source.name, *BASELINES)}
    for pair in _tracked(source, progress):
        for name, score in scores.items():
            score.add(pair, pair.prediction if name == source.name else None, BASELINES.get(name))
    rows = {name: score.means() for name, score in scores.items()}
    first = scores[source.name]
    ordered = {name: rows[name] for name in (*BASELINES, source.name)}
    return EvaluationTable(ordered, first.count, round(first.pixels / max(first.count, 1)), tuple(source.notes))


def _tracked(source: _Triples, progress: bool) -> Iterator[_Pair]:
    if not progress:
        yield from source
        return
    from rich.progress import track

    yield from track(source, total=len(source), description="evaluating", transient=True)


@dataclasses.dataclass
class _Pair:
    """Two coarse frames (2, h, w) and the fine frames from one to the other (f + 1, H, W), in dBZ, NaN = missing."""

    coarse: torch.Tensor
    truth: torch.Tensor
    prediction: torch.Tensor
    valid: torch.Tensor

    def baseline(self, method, floor: float) -> torch.Tensor:
        """The baseline's fields above the floor, (f + 1, H, W) in dBZ; f = 4 inserts the coarse middle frames first."""
        x = prepare(self.coarse, floor, CEILING_DBZ)[None, :, None]
        if len(self.truth) == 5:
            x = method(x, 1)
        return restore(method(x, _SPACE_FACTOR)[0, :, 0], floor, CEILING_DBZ)


class _Triples:
    """The pairs of coarse frames for which prediction and truth have all fine frames."""

    def __init__(self, prediction, truth, coarse, var, z_r):
        self.fine, self.truth = (_open(d, var, z_r, what) for d, what in ((prediction, "PRED"), (truth, "TRUTH")))
        if self.fine.shape[1:] != self.truth.shape[1:]:
            raise ValueError(f"the grids differ: PRED has {self.fine.shape[1:]} pixels, TRUTH {self.truth.shape[1:]}")
        _check_coordinates(self.fine, self.truth)
        if min(self.fine.shape[1:]) < 2 * _SPACE_FACTOR or any(n % _SPACE_FACTOR for n in self.fine.shape[1:]):
            raise ValueError(f"the fine grid must have an even number of pixels each way, got {self.fine.shape[1:]}")
        self.name = str(prediction.attrs.get("fastds_model", "prediction"))
        if self.name in BASELINES:
            self.name = f"{self.name} (PRED)"
        self.coarse = None if coarse is None else _open(coarse, var, z_r, "COARSE")
        if self.coarse is not None and tuple(_SPACE_FACTOR * n for n in self.coarse.shape[1:]) != self.fine.shape[1:]:
            sizes = f"{self.fine.shape[1:]} and {self.coarse.shape[1:]}"
            raise ValueError(f"PRED must have twice the pixels of COARSE each way, got {sizes}")
        self.notes = []
        if not (_HAS_TORCHMETRICS and _HAS_SCORES):
            self.notes.append(
                "SSIM and FSS need the packages torchmetrics and scores: pip install 'fastds-weather[verify]'"
            )
        if self.coarse is None:
            self.notes.append("coarse input of the baselines: TRUTH averaged 2 x 2 at every second time")
        self.pairs = self._find()
        if not self.pairs:
            raise ValueError("PRED, TRUTH and COARSE have no pair of input times with all times between them in common")

    def _find(self) -> list[tuple]:
        places = [{t: i for i, t in enumerate(_keys(s.times))} for s in (self.fine, self.truth)]
        if self.coarse is None:
            factor = 2
            starts = range(0, len(self.fine.times) - factor, factor)
            pairs = [((i, i + factor), list(_keys(self.fine.times[i : i + factor + 1]))) for i in starts]
        else:
            factor = round(self.coarse.cadence / self.fine.cadence)
            if factor not in (2, 4):
                steps = f"{self.fine.cadence:g} and {self.coarse.cadence:g} s"
                raise ValueError(f"PRED must have a half or a quarter of COARSE's time step, got {steps}")
            keys, fine = _keys(self.coarse.times), _keys(self.fine.times)
            pairs = []
            for segment in self.coarse.segments:
                for i in range(segment.start, segment.stop - 1):
                    if keys[i] in places[0]:
                        start = places[0][keys[i]]
                        pairs.append(((i, i + 1), fine[start : start + factor + 1]))
        return [
            (outer, [places[0][t] for t in times], [places[1][t] for t in times])
            for outer, times in pairs
            if len(times) == factor + 1 and all(t in places[1] for t in times)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[_Pair]:
        for outer, in_prediction, in_truth in self.pairs:
            prediction, truth = (
                torch.from_numpy(s.frames(i)) for s, i in ((self.fine, in_prediction), (self.truth, in_truth))
            )
            if self.coarse is None:
                coarse = coarsen_with_weak_echo(
                    truth[[0, -1]].numpy(),
                    _SPACE_FACTOR,
                    mode="dbz",
                    floor=EVALUATION_FLOORS[0],
                    no_echo=self.truth.no_echo,
                )
                coarse = torch.from_numpy(coarse)
            else:
                coarse = torch.from_numpy(self.coarse.frames(list(outer)))
            there = refine_mask(~torch.isnan(coarse).any(0), _SPACE_FACTOR)
            valid = there & ~torch.isnan(truth).any(0) & ~torch.isnan(prediction).any(0)
            yield _Pair(coarse, truth, prediction, interior(valid))


class _Scores:
    """Sums over pairs of the scores of one method."""

    def __init__(self):
        self.count, self.pixels = 0, 0
        self.weighted: dict[str, float] = {}
        self.plain: dict[str, list[float]] = {}
        self.hits = np.zeros((len(THRESHOLDS_DBZ), 2))
        self.recoarsened = np.zeros(2)

    def add(self, pair: _Pair, prediction: torch.Tensor | None, method) -> None:
        """Score a prediction (f + 1, H, W) in dBZ, or the baseline `method`."""
        if not pair.valid.any():
            return
        self.count += 1
        self.pixels += int(pair.valid.sum())
        high, low = sorted(EVALUATION_FLOORS, reverse=True)
        fields = {floor: pair.baseline(method, floor) if prediction is None else prediction for floor in (high, low)}
        for floor, values in fields.items():
            self._errors(pair, values, floor)
        self._skill(pair, fields[low])
        self._detail(pair, fields[high], high)

    def _errors(self, pair: _Pair, fields: torch.Tensor, floor: float) -> None:
        last = len(pair.truth) - 1
        pixels = int(pair.valid.sum())
        for middle in range(1, last):
            order = [0, middle, last]
            errors = radar_errors(fields[order], pair.truth[order], pair.valid, floor, with_ssim=_HAS_TORCHMETRICS)
            for key in ("mse_total", "mse_t2", "mse_t13", "ssim"):
                if not np.isnan(errors[key]):
                    self._weigh(f"{key}_{floor:g}", errors[key], pixels)

    def _skill(self, pair: _Pair, fields: torch.Tensor) -> None:
        valid = pair.valid
        for i, q in enumerate(THRESHOLDS_DBZ):
            p, t = ((z >= q) & valid for z in (fields, pair.truth))
            self.hits[i] += [(p & t).sum().item(), (p | t).sum().item()]
            if _HAS_SCORES:
                score = fss(fields, pair.truth, q, FSS_WINDOW, valid.expand(fields.shape))
                self.plain.setdefault(f"fss_{q:g}", []).append(score)

    def _detail(self, pair: _Pair, fields: torch.Tensor, floor: float) -> None:
        truth = torch.where(pair.valid, pair.truth, float("nan"))
        self.plain.setdefault("spectrum", []).append(spectral_ratio(fields, truth, floor, (FINE_BAND,))[FINE_BAND])
        outer = coarsen(fields[[0, -1]], _SPACE_FACTOR, floor=floor)
        keep = coarsen_mask(pair.valid, _SPACE_FACTOR).expand(outer.shape)
        error = (outer - pair.coarse.clamp(floor, CEILING_DBZ))[keep].double()
        self.recoarsened += [error.square().sum().item(), error.numel()]

    def _weigh(self, key: str, value: float, pixels: int) -> None:
        total, weight = self.weighted.get(key, (0.0, 0))
        self.weighted[key] = (total + value * pixels, weight + pixels)

    def means(self) -> dict[str, float]:
        """The scores over all pairs; NaN where a score is not defined."""
        nan = float("nan")
        out = {}
        for floor in EVALUATION_FLOORS:
            for key in ("mse_total", "mse_t2", "mse_t13", "ssim"):
                total, weight = self.weighted.get(f"{key}_{floor:g}", (nan, 1))
                out[f"{key}_{floor:g}"] = total / weight
        for (hits, events), q in zip(self.hits, THRESHOLDS_DBZ, strict=True):
            out[f"csi_{q:g}"] = hits / events if events else nan
        for key in (*(f"fss_{q:g}" for q in THRESHOLDS_DBZ), "spectrum"):
            values = [v for v in self.plain.get(key, []) if not np.isnan(v)]
            out[key] = float(np.mean(values)) if values else nan
        total, count = self.recoarsened
        out["recoarsened_rmse"] = float(np.sqrt(total / count)) if count else nan
        return out


def _open(dataset, var, z_r, what: str):
    """The dataset's reflectivity; errors name the file they come from."""
    try:
        return to_reflectivity(dataset, var, z_r=z_r)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _keys(times) -> list[int]:
    """Times in whole seconds since 1970, so that different encodings of one time agree."""
    if times.dtype.kind == "M":
        return np.round(times.astype("datetime64[ms]").astype(np.int64) / 1000).astype(np.int64).tolist()
    return [tuple(t.timetuple()[:6]) for t in times]


def _check_coordinates(first, second) -> None:
    """ValueError where both have coordinates and they differ by more than a tenth of a cell."""
    for dim_a, dim_b in zip(first.dims[1:], second.dims[1:], strict=True):
        if dim_a not in first.raw.coords or dim_b not in second.raw.coords:
            continue
        a, b = (np.asarray(s.raw[d].values, float) for s, d in ((first, dim_a), (second, dim_b)))
        if len(a) > 1 and np.abs(a - b).max() > 0.1 * abs(a[1] - a[0]):
            raise ValueError(
                f"the grids differ: coordinate {dim_a} of PRED and {dim_b} of TRUTH are not the same places"
            )
