# SPDX-License-Identifier: Apache-2.0
"""Inputs against the ranges in a network's card: a score, what stands out, and one warning."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fastds.models import ModelCard

# A range is judged where a warning would be true beyond doubt.
TOLERANCE = 1.05
MOST_INPUTS = 6  # fields, or pairs of them, whose statistics are taken, evenly over all
_LARGEST = 99.0  # departure that is told
_UPWARD = ("flow residual", "flow disagreement")  # less than in training does no harm


class Departure(NamedTuple):
    """A quantity of the inputs, the range that the network knows, and how far off its middle it is, 1 at the ends."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    size: float


@dataclasses.dataclass(frozen=True)
class Domain:
    """What is known of inputs against a network's card.

    Attributes: name of the network; departures, of everything that the card has a range of; named, departures that are
    told and do not count.
    """

    name: str
    departures: tuple[Departure, ...] = ()
    named: tuple[Departure, ...] = ()

    @property
    def score(self) -> float | None:
        """The largest departure; None where the card has nothing to compare with."""
        return max((one.size for one in self.departures), default=None)

    @property
    def outside(self) -> list[Departure]:
        """What lies outside its range beyond doubt, the farthest first."""
        return sorted((d for d in self.departures + self.named if d.size > TOLERANCE), key=lambda d: -d.size)

    def attributes(self) -> dict[str, float | str]:
        """Of files: fastds_out_of_domain, the score, and fastds_out_of_domain_by, the names of what is outside."""
        score = {} if self.score is None else {"fastds_out_of_domain": round(self.score, 3)}
        by = ", ".join(d.what for d in self.outside)
        return score | ({"fastds_out_of_domain_by": by} if by else {})

    def text(self) -> str:
        """The score in words; "" where there is none."""
        return "" if self.score is None else f"out of domain {self.score:.2f} (1: the ends of the training)"

    def warn(self, stacklevel: int) -> None:
        """Warn (UserWarning), once, of everything that is outside."""
        found = self.outside
        if not found:
            return
        values = _listed([f"the {d.what} of {d.value:.4g}{' ' * bool(d.unit)}{d.unit}" for d in found])
        limits = _listed([_range(d) for d in found])
        many = len(found) > 1
        said = f"{values} {'are' if many else 'is'} outside the range{'s' * many} that {self.name} was trained for, "
        warnings.warn(f"{said}{limits}: expect larger errors", UserWarning, stacklevel + 1)


# What is compared with a range by hand: what, value or None, range or None, unit.
Ranged = tuple[str, float | None, tuple[float, float] | None, str]


def domain_of(
    card: ModelCard,
    ranges: Iterable[Ranged] = (),
    inputs: Iterable[Mapping[str, float]] = (),
    named: Iterable[Ranged] = (),
) -> Domain:
    """Judge inputs.

    ranges: hand-written ones, of which the inside counts nothing and the outside by its ratio to the end. inputs:
    statistics of each input looked at, of which the median counts, against card.input_ranges: those of the flow by
    their ratio to the upper end, the others by their distance from the middle of the range over half its width, of
    gradients in logarithms. named: as ranges, of what is warned of and does not count.
    """
    told, inputs = _compared(ranges), list(inputs)
    for what, limits in card.input_ranges.items():
        values = [one[what] for one in inputs if what in one]
        if values:
            value = float(np.median(values))
            told.append(Departure(what, value, *limits, "", _size(what, value, *limits)))
    return Domain(card.name, tuple(d._replace(size=min(d.size, _LARGEST)) for d in told), tuple(_compared(named)))


def _compared(ranges: Iterable[Ranged]) -> list[Departure]:
    """Those of which value and range are known."""
    return [
        Departure(what, value, *limits, unit, _beyond(value, *limits))
        for what, value, limits, unit in ranges
        if value is not None and limits is not None
    ]


def select_evenly(count: int) -> list[int]:
    """At most MOST_INPUTS of so many places."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(MOST_INPUTS, count))})


def ranges_of(inputs: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """The ranges of training inputs, for card.input_ranges: mean and 2.5 standard deviations on both sides, in
    logarithms of gradients; of those of the flow 0 to the upper end. A statistic that never varies has none."""
    found, inputs = {}, list(inputs)
    for what in sorted({name for one in inputs for name in one} - {"motion"}):
        values = np.array([one[what] for one in inputs if what in one])
        values = np.log(values[values > 0]) if _logarithmic(what) else values
        if len(values) < 2 or not values.std() > 0:
            continue
        ends = values.mean() + 2.5 * values.std() * np.array([-1, 1])
        ends = np.exp(ends) if _logarithmic(what) else ends
        low, high = (float(f"{end:.5g}") for end in ends)
        found[what] = [0.0 if what in _UPWARD else low, high]
    return found


def _logarithmic(what: str) -> bool:
    return what.endswith("gradient")


def _beyond(value: float, low: float, high: float) -> float:
    if value < low:
        return low / value if value > 0 else math.inf
    return value / high if value > high > 0 else math.inf if value > high else 0.0


def _size(what: str, value: float, low: float, high: float) -> float:
    if what in _UPWARD:
        return value / high if high > 0 else math.inf
    if _logarithmic(what) and low > 0:
        if not value > 0:
            return math.inf
        value, low, high = (math.log(number) for number in (value, low, high))
    return abs(value - (low + high) / 2) / ((high - low) / 2)


def _range(departure: Departure) -> str:
    """Its range in words."""
    ends = (departure.low, departure.high)[departure.low == departure.high :]
    return " to ".join(f"{end:g}" for end in ends) + f" {departure.unit}".rstrip()


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
