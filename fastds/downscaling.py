# SPDX-License-Identifier: Apache-2.0
"""Downscale radar fields: every 10 minutes in, every 5 minutes at twice the resolution out, for datasets and files."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

import fastds
from fastds.data import (
    ReflectivityInput,
    add_history,
    from_reflectivity,
    grid_spacing_m,
    open_dataset,
    output_frames,
    output_shape,
    save_dataset,
    to_reflectivity,
)

from .refinement import NEAR_PIXELS, FrameRefiner
from .tiling import check_multiple, choose_tile, network_reach, plan_tiles, round_up, run_tiles

TIME_FACTORS = (2, 4)
PRECISIONS = ("fp32", "bf16")
# Taken where several shipped weights match and none is named.
DEFAULT_MODEL = "fczsm-small"
# Working memory of the network that the automatic choice of tiles stays within.
MEMORY_BUDGET_BYTES = 2 << 30
# Fine fields larger than this are kept in a file while a command runs.
MAPPED_BYTES = 256 << 20
# Motion is judged where a warning would be true beyond doubt.
_TOLERANCE = 1.05


@dataclasses.dataclass
class Report:
    """What a run did: `model` name, `settings` written to the attributes, `notes` for the user, one a sentence."""

    model: str
    settings: dict
    notes: list[str]

    def summary(self) -> str:
        """The notes, one a line."""
        return "\n".join(self.notes)


def downscale(
    model: nn.Module,
    dataset: xr.Dataset,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    time_factor: int = 2,
    progress: bool = False,
) -> xr.Dataset:
    """Return the dataset's radar field at the model's finer grid and at time_factor times the cadence.

    A fine pixel takes the model's reflectivity where that is above the model's floor and echo is near; weaker echo
    keeps the interpolated value; cells without echo stay without echo; missing cells stay missing. Nothing is
    interpolated across gaps in time. Rates and amounts are converted by Z-R and back; amounts keep the amount of each
    cell and interval.

    model: with a card that holds floor, ceiling and factors, as fastds.load gives it. dataset: a field (time, y, x).
    var: its variable, where the attributes do not tell. z_r: (a, b) of Z = a R^b, mm6 m-3 and mm/h.
    tile, halo: pixels of the input, multiples of 16; None: one tile where the working memory allows, the network's
    reach.
    threads: CPU threads; None: torch's. precision: "fp32" or "bf16" inside the network. time_factor: 2, or 4 by
    recursion.
    progress: show a progress bar. Returns a new Dataset in memory, with the settings in its attributes.
    Deterministic for given settings. Raises ValueError for data, settings or models that do not fit.
    Warns (UserWarning) where grid spacing, cadence or motion lie outside the range in the model's card.
    """
    out, _ = _run(model, dataset, var, z_r, tile, halo, threads, precision, time_factor, progress, folder=None)
    return out


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    progress: bool = False,
    **options,
) -> Report:
    """Downscale one file into another, see `downscale`; `target` appears only when it is complete.

    model: a model, the name of shipped weights or the path of a weights file; None: the only shipped weights whose
    input variable has the standard name and units of the data. options: as downscale. Fine fields above 256 MB wait in
    an unnamed file beside the target, so that memory does not grow with the length of the series.
    Raises FileNotFoundError, ValueError.
    """
    target = Path(target)
    if target.exists() and os.path.realpath(source) == os.path.realpath(target):
        raise ValueError(f"the output must be another file than the input, got {target} twice")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}")
    settings = {
        key: options.pop(key, value)
        for key, value in (
            ("var", None),
            ("z_r", None),
            ("tile", None),
            ("halo", None),
            ("threads", None),
            ("precision", "fp32"),
            ("time_factor", 2),
        )
    }
    if options:
        raise TypeError(f"downscale_file has no option {next(iter(options))!r}")
    with open_dataset(source) as dataset:
        model, note = pick_model(model)
        out, report = _run(model, dataset, **settings, progress=progress, folder=target.parent)
        save_dataset(out, target)
    report.notes = [note, *report.notes, f"wrote {target}"]
    return report


def pick_model(model: nn.Module | str | os.PathLike | None = None) -> tuple[nn.Module, str]:
    """Return a model and a sentence about it: the one given, the one named, or the shipped one for reflectivity in dBZ.

    Where several shipped weights match, "fczsm-small" is taken if it is among them and the others are named.
    Raises ValueError with the list of candidates where that settles nothing; what fastds.load raises.
    """
    from fastds.models import available, load, load_card

    if isinstance(model, nn.Module):
        return model, f"model {model.card.name}"
    if model is not None:
        loaded = load(model)
        return loaded, f"model {loaded.card.name} ({model})"
    names = available(pretrained=True)
    matches = [name for name in names if _takes_reflectivity(load_card(name))]
    if len(matches) == 1:
        return load(
            matches[0]
        ), f"model {matches[0]} was chosen: the only one for equivalent_reflectivity_factor in dBZ"
    if DEFAULT_MODEL in matches:
        others = ", ".join(name for name in matches if name != DEFAULT_MODEL)
        return load(
            DEFAULT_MODEL
        ), f"model {DEFAULT_MODEL} was chosen; for reflectivity in dBZ there are also: {others}"
    found = "no weights are shipped" if not names else f"candidates: {', '.join(matches or names)}"
    how = "several" if matches else "none"
    raise ValueError(f"{how} of the shipped weights take reflectivity in dBZ; name one with model (--model); {found}")


def _takes_reflectivity(card) -> bool:
    variables = card.input_variables
    return (
        len(variables) == 1
        and str(variables[0].get("standard_name", "")).startswith("equivalent_reflectivity_factor")
        and str(variables[0].get("units", "")).lower() == "dbz"
    )


def _run(model, dataset, var, z_r, tile, halo, threads, precision, time_factor, progress, folder):
    """The fine dataset and the report; folder: where large fields are kept in a file, None: in memory."""
    if time_factor not in TIME_FACTORS:
        raise ValueError(f"time_factor must be 2 or 4 (applied by recursion), got {time_factor}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    if threads is not None and (int(threads) != threads or threads < 1):
        raise ValueError(f"threads must be a whole number >= 1, got {threads!r}")
    _check_model(model)
    source = to_reflectivity(dataset, var, z_r=z_r)
    with _torch_threads(threads), torch.inference_mode(), _evaluating(model):
        job = _Job(model, source, tile, halo, precision, time_factor)
        z = job.run(progress, folder)
    values = None if source.kind == "reflectivity" else _store(output_shape(source, job.scale, time_factor), folder)
    out = from_reflectivity(source, z, job.scale, time_factor, out=values)
    settings = job.settings()
    out = add_history(out.assign_attrs(settings), f"fastds {fastds.__version__} downscale with {model.card.name}")
    _warn_outside(model.card, source, job.refiner.motion_px)
    return out, Report(model.card.name, settings, [*source.notes, *job.notes])


def _check_model(model) -> None:
    card, config = getattr(model, "card", None), getattr(model, "config", {})
    if card is None:
        raise ValueError("model must have a card with its normalisation; load it with fastds.load")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so its input cannot be scaled"
        )
    if config.get("in_channels", 1) != 1 or config.get("static_channels", 0):
        raise ValueError(
            f"model {card.name} needs {config['in_channels']} variables and {config['static_channels']} static maps; "
            "a file of one radar field can only feed a model of one variable"
        )


class _Job:
    """One run over a source: tiles and network chosen, fine reflectivity made frame by frame."""

    def __init__(self, model, source: ReflectivityInput, tile, halo, precision, time_factor):
        self.model, self.source, self.precision, self.time_factor = model, source, precision, time_factor
        self.card, self.scale, self.notes = model.card, model.config.get("scale", 2), []
        self.uses_flow = bool(model.config.get("flow_guided") or model.config.get("residual") == "advection")
        self.device = next(model.parameters()).device
        self.amplitude = self.card.ceiling_dbz - self.card.floor_dbz
        self.seam_error, self.reach = None, None
        self.tile, self.halo = self._choose(tile, halo)
        height, width = source.shape[1:]
        whole = round_up(max(height, width))
        self.tiles = plan_tiles(height, width, self.tile or whole, self.halo if self.tile else 0)
        self.refiner = FrameRefiner(
            self._network,
            scale=self.scale,
            floor=self.card.floor_dbz,
            ceiling=self.card.ceiling_dbz,
            no_echo=source.no_echo,
            tiles=self.tiles,
        )
        if self.tile and self.halo < self.reach:
            self.refiner.observe = self._measure_seam

    def _network(self, x: torch.Tensor, flow: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            flow = flow.to(self.device) if self.uses_flow else None
            return self.model(x.to(self.device), flow=flow).float().cpu()

    def _choose(self, tile, halo) -> tuple[int | None, int]:
        """Core side (None: the whole grid at once) and halo; the reach is measured only where there are seams."""
        height, width = self.source.shape[1:]
        if tile is not None:
            tile = check_multiple("tile", tile, 16)
        if halo is not None:
            halo = check_multiple("halo", halo, 0)
        per_pixel = _pixel_bytes(self.model)
        fits = height * width * per_pixel <= MEMORY_BUDGET_BYTES
        if (tile is None and fits) or (tile is not None and tile >= max(height, width)):
            return None, 0
        motion = self._likely_motion()
        reach = network_reach(self._network, self.scale, self.amplitude, motion, self.uses_flow)
        self.reach = max(reach, NEAR_PIXELS + math.ceil(motion))
        halo = round_up(self.reach) if halo is None else halo
        return tile or choose_tile(height, width, halo, per_pixel, MEMORY_BUDGET_BYTES), halo

    def _likely_motion(self) -> float:
        """Pixels per input step for which the reach is measured: the card's largest, the data's is not known yet."""
        return float(self.card.motion_px[1]) if self.card.motion_px else 8.0

    def run(self, progress: bool, folder) -> np.ndarray:
        """Fine reflectivity of all segments, one after another, (n, rH, rW) float32 dBZ."""
        height, width = self.source.shape[1:]
        shape = (output_frames(self.source, self.time_factor), self.scale * height, self.scale * width)
        z = _store(shape, folder)
        start = 0
        with self._progress(progress) as advance:
            self.refiner.after_tile = advance
            for segment in self.source.segments:
                frames = (self.source.frames(i) for i in range(segment.start, segment.stop))
                if segment.stop - segment.start == 1:
                    # A frame alone between two gaps: the pair of it with itself has no motion and only its ends are
                    # kept.
                    frame = next(frames)
                    z[start] = next(self.refiner.refine([frame, frame]))
                    start += 1
                    continue
                for fine in self.refiner.refine(frames, self.time_factor):
                    z[start] = fine
                    start += 1
        self._describe()
        return z

    @contextlib.contextmanager
    def _progress(self, wanted: bool) -> Iterator:
        if not wanted:
            yield None
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        lengths = [s.stop - s.start for s in self.source.segments]
        passes = sum(max(n - 1, 1) + (2 * (n - 1) if self.time_factor == 4 and n > 1 else 0) for n in lengths)
        columns = (TextColumn("downscaling"), BarColumn(), MofNCompleteColumn(), TextColumn("tiles"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True) as bar:
            task = bar.add_task("", total=passes * len(self.tiles))
            yield lambda: bar.advance(task)

    def _measure_seam(self, x: torch.Tensor, flow: torch.Tensor) -> None:
        """Compare the tile with most echo with the same tile computed with a halo that covers the reach; once."""
        self.refiner.observe = None
        height, width = x.shape[-2:]
        tile = max(self.tiles, key=lambda t: x[:, t.core[0], t.core[1]].sum().item())
        wide = plan_tiles(height, width, self.tile, round_up(self.reach))[self.tiles.index(tile)]
        small, large = (run_tiles(self._network, x, flow, [t], self.scale) for t in (tile, wide))
        rows, columns = (slice(c.start * self.scale, c.stop * self.scale) for c in tile.core)
        difference = (small - large)[:, rows, columns].abs() * self.amplitude
        self.seam_error = difference.max().item(), difference.square().mean().sqrt().item()

    def _describe(self) -> None:
        if not self.tile:
            return
        text = f"{len(self.tiles)} tiles of {self.tile} pixels with a halo of {self.halo}"
        if self.seam_error is None:
            self.notes.append(f"{text}, which covers the network's reach of {self.reach} pixels")
        else:
            self.notes.append(
                f"{text}, less than the network's reach of {self.reach} pixels: seam error in the tile with most echo "
                f"{self.seam_error[0]:.3g} dBZ at most, {self.seam_error[1]:.2g} dBZ rms"
            )

    def settings(self) -> dict:
        """Attributes that say how the file was made."""
        settings = {
            "fastds_version": fastds.__version__,
            "fastds_model": self.card.name,
            "fastds_space_factor": self.scale,
            "fastds_time_factor": self.time_factor,
            "fastds_precision": self.precision,
            "fastds_floor_dBZ": float(self.card.floor_dbz),
            "fastds_tile": self.tile or 0,
            "fastds_halo": self.halo,
        }
        if self.card.licence:
            settings["fastds_model_licence"] = self.card.licence
        if self.seam_error is not None:
            settings["fastds_seam_error_dBZ"] = self.seam_error[0]
        if self.source.z_r is not None:
            settings["fastds_z_r"] = "Z = {:g} R^{:g}, {}".format(*self.source.z_r, self.source.z_r_origin)
        return settings


def _pixel_bytes(model) -> float:
    """Working memory of a forward pass per coarse pixel of a pair of frames, from the network's width."""
    features, scale = model.config.get("num_features", 64), model.config.get("scale", 2)
    return 4.0 * features * (60 + scale**2)


def _store(shape, folder) -> np.ndarray:
    """An array of float32, in a file without a name in `folder` where it is large and a folder is given."""
    if folder is None or 4 * math.prod(shape) <= MAPPED_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _warn_outside(card, source: ReflectivityInput, motion_px: float) -> None:
    """Warn where the data lie outside the range the model was trained for."""
    spacing = grid_spacing_m(source.raw)
    spacing = None if spacing is None or None in spacing else math.sqrt(spacing[0] * spacing[1])
    for what, value, limits, unit in (
        ("grid spacing", spacing, card.grid_spacing_m, "m"),
        ("cadence", source.cadence, card.cadence_s, "s"),
        ("motion per input step", motion_px, card.motion_px, "pixels"),
    ):
        if value is None or limits is None:
            continue
        if not limits[0] / _TOLERANCE <= value <= limits[1] * _TOLERANCE:
            warnings.warn(
                f"the {what} of {value:.4g} {unit} is outside the range that {card.name} was trained for, "
                f"{limits[0]:g} to {limits[1]:g} {unit}: expect larger errors",
                UserWarning,
                stacklevel=4,
            )


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(int(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
