# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of means over dependent test samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
MIN_BLOCKS = 5  # minimum number of blocks for an interval


def make_block_labels(blocks: Iterable[Sequence[int]]) -> np.ndarray:
    """Number the blocks of time of all samples.

    Args:
        blocks: for each file, the number of the block of time of each sample. Blocks of different files are distinct.

    Returns:
        (samples, 1) labels.
    """
    keys = [(k, number) for k, numbers in enumerate(blocks) for number in numbers]
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1, 1)


def has_too_few_blocks(labels: np.ndarray) -> bool:
    """Return True if there are fewer than MIN_BLOCKS distinct rows of labels, too few for an interval."""
    return len(np.unique(labels, axis=0)) < MIN_BLOCKS


def describe_intervals(labels: np.ndarray) -> str:
    """Return the note on intervals below tables of Estimates."""
    return (
        f"Intervals are over the {len(np.unique(labels))} blocks of time of the test, not over seeds; of fewer than "
        f"{MIN_BLOCKS} there are none."
    )


def draw_weights(labels: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draw bootstrap weights by resampling labels, such as blocks of time or regions, with replacement.

    Samples of one time or one region are dependent, so labels are drawn and not samples. Each column of labels is drawn
    independently; the weight of a sample is the product of the counts of its labels.

    Args:
        labels: (samples, columns).
        draws: number of draws.
        seed: random seed.

    Returns:
        Weights (draws, samples).
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
    """Compute the 95 % bootstrap interval of the mean of one number per sample.

    Args:
        difference: (samples,).
        labels: (samples, columns), see draw_weights.
        draws: number of draws.
        seed: random seed.

    Returns:
        Lower and upper end of the interval.
    """
    weight = draw_weights(labels, draws, seed)
    weight = weight[weight.sum(1) > 0]  # with several columns of labels a draw may be empty
    low, high = np.percentile(weight @ difference / weight.sum(1), [2.5, 97.5])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A mean and its 95 % interval, which is NaN if there are too few blocks for an interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def from_samples(cls, values: np.ndarray, labels: np.ndarray) -> Estimate:
        """Estimate the mean of one number per sample.

        Args:
            values: (samples,).
            labels: (samples, columns), see draw_weights.
        """
        mean = float(np.mean(values))
        return cls(
            mean, *((np.nan, np.nan) if has_too_few_blocks(labels) else compute_interval(np.asarray(values), labels))
        )

    @classmethod
    def from_statistic(cls, statistic: Callable[[np.ndarray], np.ndarray], labels: np.ndarray) -> Estimate:
        """Estimate a statistic of all samples.

        Draws in which the statistic is NaN are ignored; if they are more than half of the draws, there is no interval.

        Args:
            statistic: function from weights (draws, samples) to (draws,).
            labels: (samples, columns), see draw_weights.
        """
        mean = float(statistic(np.ones((1, len(labels))))[0])
        if has_too_few_blocks(labels) or np.isnan(mean):
            return cls(mean, np.nan, np.nan)
        values = statistic(draw_weights(labels))
        if np.isnan(values).mean() > 0.5:
            return cls(mean, np.nan, np.nan)
        return cls(mean, *(float(v) for v in np.nanpercentile(values, [2.5, 97.5])))

    def format(self, digits: int = 3, sign: str = "") -> str:
        """Format the estimate as "0.730 [0.701, 0.762]", or as "0.730" if it has no interval.

        Args:
            digits: number of decimals.
            sign: "+" to print the sign of positive numbers.
        """
        form = f"{sign}.{digits}f"
        if np.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def compare_sign(self, expected: float) -> str:
        """Compare the sign of a difference with that of an expected difference.

        Returns:
            "agrees" or "opposite", or "undecided" if the interval includes zero or there is no interval.
        """
        if not (self.low > 0 or self.high < 0):
            return "undecided"
        return "agrees" if (self.mean < 0) == (expected < 0) else "opposite"
