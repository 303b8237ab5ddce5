# SPDX-License-Identifier: Apache-2.0
"""Ways to forecast: networks by their cards, and the baselines, all from fields in dBZ to fields in dBZ."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fastds.data import clip_reflectivity, restore
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ
from fastds.models import ModelCard, available, load, load_card
from fastds.models.baselines import blurred_persistence, extrapolation, persistence, pysteps_extrapolation
from fastds.tasks.common.inference import named
from fastds.tasks.common.settings import device_of
from fastds.tasks.nowcast.starts import Timeline, find_starts

BLURRED = "blurred-persistence"
# Name: function and how many fields it takes.
BASELINES = {
    "persistence": (persistence, 1),
    BLURRED: (blurred_persistence, 5),
    "extrapolation": (extrapolation, 2),
    "pysteps": (pysteps_extrapolation, 3),
}
STILL = ("persistence", BLURRED)  # those that move nothing
# Taken where no method is named and several nowcasters are shipped, or none.
DEFAULT_MODEL, FALLBACK = "nowcast-small", "extrapolation"
# Forecasts of networks less than this above the floor are no echo: least squared error makes networks hedge, so that
# they would never be dry. On KNMI, MCH, OPERA and BoM 0.57 to 1.04 of the observed dry area is dry so (0 without it),
# for 0.3 to 1.6 % more squared error in dBZ; 3 dB: 0.6 to 1.12 and 0.4 to 3.2 %. Rain from 0.1 mm/h on is kept.
DRY_DB = 2.0
# Fields before the start where a card does not tell: m of the DB-RNN paper.
KNOWN = 5


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to forecast.

    Attributes:
        card: its name, floor and ceiling in dBZ, and the grids and intervals it knows.
        known: fields it takes.
        function: (x (1, known, 1, H, W) in [0, 1], NaN = missing; steps) -> (1, steps, 1, H, W) in [0, 1].
        model: the network, or None.
    """

    card: ModelCard
    known: int
    function: Callable
    model: nn.Module | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def dry_below(self) -> float:
        """Reflectivity below which a forecast is no echo, dBZ; extrapolation keeps the weak echo that was observed."""
        return float(self.card.floor_dbz) + (DRY_DB if self.model is not None else 0.0)

    @property
    def moves(self) -> bool:
        """Whether it moves echo by the motion of several fields."""
        return self.name not in STILL and self.known > 1

    @property
    def keeps_area(self) -> bool:
        """Whether its forecasts are dried to about the wet area of the last field, see wet_area; blurred persistence is
        made for its squared error, as smooth forecasts are."""
        return self.name != BLURRED

    @property
    def draws(self) -> bool:
        """Whether it draws members itself, with noise that it was trained with."""
        return self._takes("members")

    def in_blocks(self, block: int) -> Method:
        """The method started anew from its own forecasts after every `block` fields, for long leads.

        Raises ValueError for a method that keeps no state.
        """
        return self._with("block", block, "cannot start anew from its own forecasts")

    def smoothed(self) -> Method:
        """The method without the intensities of the last field: forecasts as smooth as least squared error makes them.

        Raises ValueError for a method that has no such forecasts.
        """
        return self._with("smooth", True, "gives its forecasts no intensities that could be left out")

    def mean(self) -> Method:
        """The method as members are drawn around it: of least squared error where it has such forecasts.

        Raises ValueError for a method that moves nothing or takes one field, whose change cannot be seen.
        """
        if self.draws:
            return self
        if not self.moves:
            raise ValueError(
                f"method {self.name} {'moves nothing' if self.name in STILL else 'takes one field'}, and members need "
                "the motion of two fields; leave out the arguments members and probability, or take extrapolation"
            )
        return self.smoothed() if self._takes("smooth") else self

    def needing_fewer(self, line: Timeline, interval: float, start: str | None, every: str | None) -> str:
        """The end of a refusal for too few fields: the method that needs less, where that could start; interval,
        start, every: see find_starts."""
        _, known = BASELINES[FALLBACK]
        if self.known <= known:
            return ""
        try:
            find_starts(line, known, interval, start, every)
        except ValueError:
            return ""
        return f"; the argument model takes {FALLBACK}, too, which needs {known} every {interval:g} s"

    def _takes(self, option: str) -> bool:
        return self.model is not None and option in inspect.signature(self.model.forecast).parameters

    def _with(self, option: str, value, refusal: str) -> Method:
        if not self._takes(option):
            raise ValueError(f"method {self.name} {refusal}; leave out the argument {option}")
        return dataclasses.replace(self, function=functools.partial(self.model.forecast, **{option: value}))

    def __call__(self, z: np.ndarray, steps: int) -> np.ndarray:
        """Forecast fields (steps, H, W) in dBZ, floor = no echo, else at least dry_below, from the known ones (known,
        H, W) in dBZ.

        Missing pixels (NaN) are filled or taken as dry, as the method does; the result has none.
        """
        return self._run(z, steps)[0]

    def members(self, z: np.ndarray, steps: int, count: int) -> np.ndarray:
        """So many members (count, steps, H, W) of a method that draws them, else as the call."""
        return self._run(z, steps, members=count)

    def _run(self, z: np.ndarray, steps: int, **options) -> np.ndarray:
        low, high = self.card.floor_dbz, self.card.ceiling_dbz
        device = torch.device("cpu") if self.model is None else device_of(self.model)
        x = (torch.from_numpy(clip_reflectivity(z, low, high)) - low) / (high - low)
        with torch.inference_mode():
            y = self.function(x[None, :, None].to(device), steps, **options)
        forecast = restore(y[0].movedim(1, 0).float().cpu().clamp(0, 1), low, high)
        return torch.where(forecast < self.dry_below, low, forecast).numpy()


def pick_method(model: nn.Module | str | os.PathLike | None = None) -> tuple[Method, str]:
    """Return a method and a sentence about it: a network, one named or its file, a baseline, or a shipped nowcaster.

    Raises ValueError where that settles nothing or a model does not forecast, and what fastds.load raises.
    """
    if isinstance(model, nn.Module):
        return _of_model(model), named(model, model)
    if model is None:
        return _shipped()
    if isinstance(model, str) and model in BASELINES:
        return baseline(model), f"method {model}, which needs no weights"
    try:
        loaded = load(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; methods without weights: {', '.join(BASELINES)}") from None
    return _of_model(loaded), named(loaded, model)


def baseline(name: str) -> Method:
    """The method of a name in BASELINES, between the floor and ceiling of nowcasts."""
    function, known = BASELINES[name]
    card = ModelCard(name=name, floor_dbz=NOWCAST_FLOOR_DBZ, ceiling_dbz=NOWCAST_CEILING_DBZ, input_steps=known)
    return Method(card, known, function)


def _shipped() -> tuple[Method, str]:
    names = [name for name in available(pretrained=True) if load_card(name).input_steps is not None]
    if not names:
        return baseline(FALLBACK), f"method {FALLBACK} (no weights of a nowcaster are shipped)"
    chosen = names[0] if len(names) == 1 else DEFAULT_MODEL
    if chosen not in names:
        raise ValueError(f"several nowcasters are shipped, name one with the argument model: {', '.join(names)}")
    others = ", ".join(name for name in names if name != chosen)
    return _of_model(load(chosen)), f"model {chosen}" + f" (other nowcasters: {others})" * bool(others)


def _of_model(model: nn.Module) -> Method:
    card = getattr(model, "card", None)
    if not hasattr(model, "forecast") or card is None:
        raise ValueError(f"model {getattr(card, 'name', '') or type(model).__name__} does not forecast")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so its input cannot be scaled"
        )
    return Method(card, card.input_steps or KNOWN, model.forecast, model)
