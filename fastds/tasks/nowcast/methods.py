# SPDX-License-Identifier: Apache-2.0
"""Nowcasting methods: networks and baselines, from frames in dBZ to frames in dBZ."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fastds._options import spell_argument
from fastds.data import clip_reflectivity, restore
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ
from fastds.inference.execution import get_device
from fastds.inference.files import describe_model
from fastds.models import ModelCard, available, load, load_card
from fastds.models.baselines import blurred_persistence, extrapolation, persistence, pysteps_extrapolation
from fastds.models.baselines.motion import MOTION_FRAMES
from fastds.models.card import Network
from fastds.tasks.nowcast.starts import Timeline, find_starts

BLURRED = "blurred-persistence"
# Name -> function, number of input frames, least number of input frames.
BASELINES = {
    "persistence": (persistence, 1, 1),
    BLURRED: (blurred_persistence, 5, 5),
    "extrapolation": (extrapolation, MOTION_FRAMES, 2),
    "pysteps": (pysteps_extrapolation, 3, 3),
}
STILL = ("persistence", BLURRED)  # baselines without motion
# Default if several networks are shipped, and if no network is shipped.
DEFAULT_MODEL, FALLBACK = "nowcast-small", "extrapolation"
# Forecasts of networks below this value in dB above the floor are set to no echo. Networks trained for least squared
# error hardly ever forecast exactly no echo. With 2 dB, the dry area is close to the observed one, at a small cost in
# squared error, and rain from 0.1 mm/h on is preserved.
DRY_DB = 2.0
# Number of input frames if the model card does not declare it: m in the DB-RNN paper.
KNOWN = 5


@dataclasses.dataclass(frozen=True)
class Method:
    """Nowcasting method.

    Attributes:
        card: model card with name, floor and ceiling in dBZ, and the ranges of grid spacing and interval.
        known: number of input frames.
        fewest: least number of input frames, for starts with no more frames before them; `known` for most methods.
        function: (x (1, fewest to known, 1, H, W) in [0, 1], NaN = missing; steps) -> (1, steps, 1, H, W) in [0, 1].
        model: network, or None.
    """

    card: ModelCard
    known: int
    fewest: int
    function: Callable
    model: Any = None  # Network or None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def dry_below(self) -> float:
        """Reflectivity in dBZ below which a forecast is set to no echo.

        It is lower for methods without a network, which preserve weak observed echo.
        """
        return float(cast(float, self.card.floor_dbz)) + (DRY_DB if self.model is not None else 0.0)

    @property
    def uses_motion(self) -> bool:
        """True if the method advects the last frame with the motion of several frames."""
        return self.name not in STILL and self.known > 1

    @property
    def has_limited_wet_area(self) -> bool:
        """True if forecasts are limited to about the wet area of the last frame, see wet_area.

        Blurred persistence is not limited, because it minimises the squared error, as smooth forecasts do.
        """
        return self.name != BLURRED

    @property
    def draws_members(self) -> bool:
        """True if the network draws members with the noise with which it was trained."""
        return self._has_option("members")

    def with_blocks(self, block: int) -> Method:
        """Return the method with restarts from the last forecast frames after every `block` frames.

        Restarts are for long lead times.

        Raises:
            ValueError: the method has no such option.
        """
        return self._set_option("block", block, "cannot start anew from its own forecasts")

    def with_smooth_forecasts(self) -> Method:
        """Return the method without matching of intensities to the last frame.

        Its forecasts are smooth and have the least squared error.

        Raises:
            ValueError: the method has no such option.
        """
        return self._set_option("smooth", True, "gives its forecasts no intensities that could be left out")

    def to_ensemble_mean(self) -> Method:
        """Return the method that gives the mean of an ensemble: smooth forecasts if the method has them.

        Raises:
            ValueError: the method uses no motion, or a single frame.
        """
        if self.draws_members:
            return self
        if not self.uses_motion:
            raise ValueError(
                f"method {self.name} {'moves nothing' if self.name in STILL else 'takes one field'}, and members need "
                f"the motion of two fields; leave out {spell_argument('members', 'probability')}, or take extrapolation"
            )
        return self.with_smooth_forecasts() if self._has_option("smooth") else self

    def suggest_baseline(self, line: Timeline, interval: float, start: str | None, every: str | None) -> str:
        """Return the end of an error message for too few frames: a baseline that needs fewer frames, if any.

        Args:
            line: times of the frames.
            interval: see find_starts.
            start: see find_starts.
            every: see find_starts.
        """
        _, known, fewest = BASELINES[FALLBACK]
        if self.fewest <= fewest:
            return ""
        try:
            find_starts(line, known, fewest, interval, start, every)
        except ValueError:
            return ""
        return f"; {spell_argument('model')} takes {FALLBACK}, too, which needs {fewest} every {interval:g} s"

    def _has_option(self, option: str) -> bool:
        return self.model is not None and option in inspect.signature(self.model.forecast).parameters

    def _set_option(self, option: str, value, reason: str) -> Method:
        if not self._has_option(option):
            raise ValueError(f"method {self.name} {reason}; leave out {spell_argument(option)}")
        return dataclasses.replace(self, function=functools.partial(self.model.forecast, **{option: value}))

    def __call__(self, z: np.ndarray, steps: int) -> np.ndarray:
        """Forecast frames.

        Missing pixels (NaN) are filled or treated as dry, depending on the method; the forecast has no missing pixels.

        Args:
            z: input frames (fewest to known, H, W) in dBZ.
            steps: number of forecast frames.

        Returns:
            (steps, H, W) in dBZ: floor (no echo) or at least dry_below.
        """
        return self._run(z, steps)[0]

    def draw_members(self, z: np.ndarray, steps: int, count: int) -> np.ndarray:
        """Return members (count, steps, H, W) in dBZ of a method that draws members.

        Args:
            z: input frames (fewest to known, H, W) in dBZ.
            steps: number of forecast frames.
            count: number of members.
        """
        return self._run(z, steps, members=count)

    def _run(self, z: np.ndarray, steps: int, **options) -> np.ndarray:
        low, high = cast(float, self.card.floor_dbz), cast(float, self.card.ceiling_dbz)
        device = torch.device("cpu") if self.model is None else get_device(self.model)
        x = (torch.from_numpy(clip_reflectivity(z, low, high)) - low) / (high - low)
        with torch.inference_mode():
            y = self.function(x[None, :, None].to(device), steps, **options)
        forecast = restore(y[0].movedim(1, 0).float().cpu().clamp(0, 1), low, high)
        return torch.where(forecast < self.dry_below, low, forecast).numpy()


def pick_method(model: nn.Module | str | os.PathLike | None = None) -> tuple[Method, str]:
    """Return a method and a note about it.

    Args:
        model: network, shipped name, weights file or baseline; None: the shipped nowcasting network.

    Raises:
        ValueError: the model does not forecast, several networks are shipped without a default, or the weights cannot
            be read, see fastds.load.
        FileNotFoundError: there are no such weights.
    """
    if isinstance(model, nn.Module):
        return _make_method(model), describe_model(model, model)
    if model is None:
        return _pick_shipped()
    if isinstance(model, str) and model in BASELINES:
        return make_baseline(model), f"method {model}, which needs no weights"
    try:
        loaded = load(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; methods without weights: {', '.join(BASELINES)}") from None
    return _make_method(loaded), describe_model(loaded, model)


def make_baseline(name: str) -> Method:
    """Return a baseline of BASELINES with the floor and ceiling of nowcasts."""
    function, known, fewest = BASELINES[name]
    card = ModelCard(name=name, floor_dbz=NOWCAST_FLOOR_DBZ, ceiling_dbz=NOWCAST_CEILING_DBZ, input_steps=known)
    return Method(card, known, fewest, function)


def _pick_shipped() -> tuple[Method, str]:
    names = [name for name in available(pretrained=True) if load_card(name).input_steps is not None]
    if not names:
        return make_baseline(FALLBACK), f"method {FALLBACK} (no weights of a nowcaster are shipped)"
    chosen = names[0] if len(names) == 1 else DEFAULT_MODEL
    if chosen not in names:
        raise ValueError(f"several nowcasters are shipped, name one with {spell_argument('model')}: {', '.join(names)}")
    others = ", ".join(name for name in names if name != chosen)
    return _make_method(load(chosen)), f"model {chosen}" + f" (other nowcasters: {others})" * bool(others)


def _make_method(model: Network) -> Method:
    card = getattr(model, "card", None)
    if not hasattr(model, "forecast") or card is None:
        raise ValueError(f"model {getattr(card, 'name', '') or type(model).__name__} does not forecast")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so its input cannot be scaled"
        )
    known = card.input_steps or KNOWN
    return Method(card, known, known, model.forecast, model)
