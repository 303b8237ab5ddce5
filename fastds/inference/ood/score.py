# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution score: inputs are compared with the ranges in a model card, with one warning."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fastds.models import ModelCard

# Deviations above this threshold are reported; a margin of 5 % avoids doubtful warnings.
TOLERANCE = 1.05
MAX_INPUTS = 6  # number of fields, or pairs of fields, whose statistics are computed
_MAX_DEVIATION = 99.0  # largest deviation that is reported
_UPPER_LIMIT_ONLY = ("flow residual", "flow disagreement")  # values below the training range are harmless


class Deviation(NamedTuple):
    """Deviation of a quantity from the range that a network was trained for.

    Attributes:
        what: name of the quantity.
        value: value of the inputs.
        low: lower end of the range.
        high: upper end of the range.
        unit: unit of the values.
        size: deviation; a value above 1 is outside the range.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    size: float


@dataclasses.dataclass(frozen=True)
class OODReport:
    """Out-of-distribution report of inputs for a network.

    Attributes:
        name: name of the network.
        deviations: deviations of the quantities for which the card has a range.
        warn_only: further deviations that are reported and do not count for the score.
    """

    name: str
    deviations: tuple[Deviation, ...] = ()
    warn_only: tuple[Deviation, ...] = ()

    @property
    def score(self) -> float | None:
        """The largest deviation; None if the card has no ranges."""
        return max((one.size for one in self.deviations), default=None)

    @property
    def outside(self) -> list[Deviation]:
        """Deviations above the threshold, the largest first."""
        return sorted((d for d in self.deviations + self.warn_only if d.size > TOLERANCE), key=lambda d: -d.size)

    def attributes(self) -> dict[str, float | str]:
        """Return the attributes for files.

        They are fastds_out_of_domain (the score) and fastds_out_of_domain_by (the quantities that are outside).
        """
        score = {} if self.score is None else {"fastds_out_of_domain": round(self.score, 3)}
        by = ", ".join(d.what for d in self.outside)
        return score | ({"fastds_out_of_domain_by": by} if by else {})

    def text(self) -> str:
        """Return the score as text; "" if there is no score."""
        return "" if self.score is None else f"out of domain {self.score:.2f} (1: the ends of the training)"

    def warn(self, stacklevel: int) -> None:
        """Issue one UserWarning for all deviations above the threshold."""
        found = self.outside
        if not found:
            return
        values = _join([f"the {d.what} of {d.value:.4g}{' ' * bool(d.unit)}{d.unit}" for d in found])
        limits = _join([_format_range(d) for d in found])
        many = len(found) > 1
        message = f"{values} {'are' if many else 'is'} outside the range{'s' * many} that {self.name} was trained for, "
        warnings.warn(f"{message}{limits}: expect larger errors", UserWarning, stacklevel + 1)


# Quantity with an explicit range: name, value or None, range or None, unit.
RangedQuantity = tuple[str, float | None, tuple[float, float] | None, str]


def assess_inputs(
    card: ModelCard,
    ranges: Iterable[RangedQuantity] = (),
    inputs: Iterable[Mapping[str, float]] = (),
    warn_only: Iterable[RangedQuantity] = (),
) -> OODReport:
    """Compare inputs with the ranges of a model card.

    Args:
        card: model card; card.input_ranges has the ranges of the input statistics.
        ranges: quantities with explicit ranges. Inside the range their deviation is 0, outside it is the ratio to the
            exceeded end.
        inputs: statistics of each input that was examined; the median over the inputs is compared. The deviation of
            flow statistics is the ratio to the upper end. That of other statistics is the distance from the middle of
            the range divided by half its width, for gradients in logarithms.
        warn_only: as ranges; reported in the warning, but not part of the score.
    """
    found, inputs = _compare_ranges(ranges), list(inputs)
    for what, limits in card.input_ranges.items():
        values = [one[what] for one in inputs if what in one]
        if values:
            value = float(np.median(values))
            found.append(Deviation(what, value, limits[0], limits[1], "", _compute_deviation(what, value, *limits)))
    return OODReport(
        card.name, tuple(d._replace(size=min(d.size, _MAX_DEVIATION)) for d in found), tuple(_compare_ranges(warn_only))
    )


def _compare_ranges(ranges: Iterable[RangedQuantity]) -> list[Deviation]:
    """Return the deviations of the quantities whose value and range are known."""
    return [
        Deviation(what, value, *limits, unit, _compute_excess(value, *limits))
        for what, value, limits, unit in ranges
        if value is not None and limits is not None
    ]


def select_evenly(count: int) -> list[int]:
    """Select at most MAX_INPUTS of `count` indices, evenly distributed."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(MAX_INPUTS, count))})


def compute_ranges(inputs: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the ranges of training inputs for card.input_ranges.

    A range is the mean plus and minus 2.5 standard deviations, for gradients in logarithms; for statistics of the flow
    it begins at 0. A statistic without variation has no range.
    """
    found, inputs = {}, list(inputs)
    for what in sorted({name for one in inputs for name in one} - {"motion"}):
        values = np.array([one[what] for one in inputs if what in one])
        values = np.log(values[values > 0]) if _is_logarithmic(what) else values
        if len(values) < 2 or not values.std() > 0:
            continue
        ends = values.mean() + 2.5 * values.std() * np.array([-1, 1])
        ends = np.exp(ends) if _is_logarithmic(what) else ends
        low, high = (float(f"{end:.5g}") for end in ends)
        found[what] = [0.0 if what in _UPPER_LIMIT_ONLY else low, high]
    return found


def _is_logarithmic(what: str) -> bool:
    return what.endswith("gradient")


def _compute_excess(value: float, low: float, high: float) -> float:
    if value < low:
        return low / value if value > 0 else math.inf
    return value / high if value > high > 0 else math.inf if value > high else 0.0


def _compute_deviation(what: str, value: float, low: float, high: float) -> float:
    if what in _UPPER_LIMIT_ONLY:
        return value / high if high > 0 else math.inf
    if _is_logarithmic(what) and low > 0:
        if not value > 0:
            return math.inf
        value, low, high = (math.log(number) for number in (value, low, high))
    return abs(value - (low + high) / 2) / ((high - low) / 2)


def _format_range(deviation: Deviation) -> str:
    """Format the range of a deviation."""
    ends = (deviation.low, deviation.high)[deviation.low == deviation.high :]
    return " to ".join(f"{end:g}" for end in ends) + f" {deviation.unit}".rstrip()


def _join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
