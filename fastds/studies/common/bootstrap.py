# SPDX-License-Identifier: Apache-2.0
"""How sure a mean over test samples is that are not independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
MIN_BLOCKS = 5  # blocks that an interval can be drawn from


def make_block_labels(blocks: Iterable[Sequence[int]]) -> np.ndarray:
    """(samples, 1): the number of the block of time of each sample; blocks: those of the samples of each file, which
    share none with other files."""
    keys = [(k, number) for k, numbers in enumerate(blocks) for number in numbers]
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1, 1)


def has_too_few_blocks(labels: np.ndarray) -> bool:
    """Whether there are too few blocks for an interval."""
    return len(np.unique(labels, axis=0)) < MIN_BLOCKS


def describe_intervals(labels: np.ndarray) -> str:
    """The sentence below tables of Estimates."""
    return (
        f"Intervals are over the {len(np.unique(labels))} blocks of time of the test, not over seeds; of fewer than "
        f"{MIN_BLOCKS} there are none."
    )


def draw_weights(labels: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each sample counts (draws, samples) when its labels, blocks of time or regions, are drawn with
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
    return weight


def compute_interval(
    difference: np.ndarray, labels: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of one number per sample; labels and draws: see drawn."""
    weight = draw_weights(labels, draws, seed)
    weight = weight[weight.sum(1) > 0]  # of several kinds a draw may have no sample
    low, high = np.percentile(weight @ difference / weight.sum(1), [2.5, 97.5])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A mean and its 95 % interval, NaN where there are too few blocks for one."""

    mean: float
    low: float
    high: float

    @classmethod
    def from_samples(cls, values: np.ndarray, labels: np.ndarray) -> Estimate:
        """The mean of one number per sample; labels: (samples, kinds), the blocks of each, see drawn."""
        mean = float(np.mean(values))
        return cls(
            mean, *((np.nan, np.nan) if has_too_few_blocks(labels) else compute_interval(np.asarray(values), labels))
        )

    @classmethod
    def from_statistic(cls, statistic: Callable[[np.ndarray], np.ndarray], labels: np.ndarray) -> Estimate:
        """What statistic, weights (draws, samples) -> (draws,), makes of all samples, and its interval; draws for which
        it is not defined (NaN) are left out, and where half of them are, there is no interval."""
        mean = float(statistic(np.ones((1, len(labels))))[0])
        if has_too_few_blocks(labels) or np.isnan(mean):
            return cls(mean, np.nan, np.nan)
        values = statistic(draw_weights(labels))
        if np.isnan(values).mean() > 0.5:
            return cls(mean, np.nan, np.nan)
        return cls(mean, *(float(v) for v in np.nanpercentile(values, [2.5, 97.5])))

    def format(self, digits: int = 3, sign: str = "") -> str:
        """As 0.730 [0.701, 0.762], or 0.730 alone; sign: "+" for differences."""
        form = f"{sign}.{digits}f"
        if np.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def compare_sign(self, expected: float) -> str:
        """Whether a difference agrees with an expected one, by whether the interval leaves out zero."""
        if not (self.low > 0 or self.high < 0):
            return "undecided"
        return "agrees" if (self.mean < 0) == (expected < 0) else "opposite"
