# SPDX-License-Identifier: Apache-2.0
"""How sure a mean over test samples is that are not independent of each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS = 2000
FEWEST = 5  # blocks that an interval can be drawn from


def interval(difference: np.ndarray, labels: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of one number per sample, drawing its labels, blocks of time or regions, with
    replacement.

    labels: (samples, kinds). Kinds are drawn independently and a sample counts as often as its labels were drawn
    together: samples of one time or one region are not independent of each other.
    """
    rng = np.random.default_rng(seed)
    weight = np.ones((draws, len(labels)))
    for column in labels.T:
        kinds, index = np.unique(column, return_inverse=True)
        counts = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), draws)
        weight *= counts[:, index]
    means = weight @ difference / weight.sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A mean and its 95 % interval, NaN where there are too few blocks for one."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, labels: np.ndarray) -> Estimate:
        """The mean of one number per sample; labels (samples, 1): the block of each, see interval."""
        few = len(np.unique(labels)) < FEWEST
        return cls(float(np.mean(values)), *((np.nan, np.nan) if few else interval(np.asarray(values), labels)))

    def text(self, digits: int = 3, sign: str = "") -> str:
        """As 0.730 [0.701, 0.762], or 0.730 alone; sign: "+" for differences."""
        form = f"{sign}.{digits}f"
        if np.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def verdict(self, expected: float) -> str:
        """Whether a difference agrees with an expected one, by whether the interval leaves out zero."""
        if not (self.low > 0 or self.high < 0):
            return "undecided"
        return "agrees" if (self.mean < 0) == (expected < 0) else "opposite"
