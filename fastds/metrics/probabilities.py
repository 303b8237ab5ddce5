# SPDX-License-Identifier: Apache-2.0
"""Scores of probability forecasts of an event: Brier score and its decomposition, reliability diagram, ROC curve.

All scores come from tallies, which are sums over cells in classes of the forecast probability. Tallies of several
fields can be added, so that the scores of many fields need no more memory than those of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Columns of a tally.
CELLS, EVENTS, PROBABILITY, SQUARE, PRODUCT = range(5)


def tally_probabilities(probability: np.ndarray, event: np.ndarray, classes: int = 100) -> np.ndarray:
    """Sum cells by class of their forecast probability p, for which class round(classes * p) is used.

    Args:
        probability: any shape, p from 0 to 1, without NaN.
        event: bool of the same shape, o, whether the event occurred.
        classes: number of steps from 0 to 1. Shares of at most `classes` members have a class each.

    Returns:
        (classes + 1, 5) float64: number of cells, sums of o, p, p^2 and p o.

    Raises:
        ValueError: the shapes differ, or a probability is not from 0 to 1.
    """
    if probability.shape != event.shape:
        raise ValueError(
            f"probability and event must have the same shape, got {tuple(probability.shape)} and {tuple(event.shape)}"
        )
    p, o = probability.ravel().astype(np.float64), event.ravel().astype(np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities must be from 0 to 1, got {p.min():g} to {p.max():g}")
    number = np.rint(classes * p).astype(np.int64)
    columns = (None, o, p, p * p, p * o)
    return np.stack([np.bincount(number, column, minlength=classes + 1) for column in columns], -1).astype(np.float64)


def convert_member_counts(counts: ArrayLike) -> np.ndarray:
    """Convert counts of members to a tally, with the probabilities k / M.

    Args:
        counts: (..., M + 1, 2), numbers of cells and of events at which k of M members reach the threshold, see
            reliability_counts.

    Returns:
        (..., M + 1, 5), see tally_probabilities.
    """
    n, o = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    p = np.linspace(0, 1, n.shape[-1])
    return np.stack([n, o, n * p, n * p * p, o * p], -1)


def compute_brier_scores(tally: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the Brier score, its skill, and its decomposition over the classes k of the tally.

        brier = mean (p - o)^2 = reliability - resolution + uncertainty + within
        reliability = sum n_k (p_k - o_k)^2 / n,  resolution = sum n_k (o_k - o)^2 / n,  uncertainty = o (1 - o)

    p_k and o_k are the mean probability and the frequency of the event in class k, and o is its frequency in the
    sample. `within` is 0 if all probabilities of a class are equal.

    Args:
        tally: (..., classes, 5), see tally_probabilities.

    Returns:
        Arrays (...): brier, brier_skill (1 - brier / uncertainty, the skill against the frequency of the sample; NaN if
        the event occurred never or always), reliability, resolution, uncertainty, within, frequency (o),
        mean_probability and cells. NaN without cells.

    Source: Brier 1950; Murphy 1973, equation 15; Stephenson et al. 2008, equation 8 (`within`).
    """
    n, events, p, square, product = np.moveaxis(tally, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = n.sum(-1)
        frequency = events.sum(-1) / total
        brier = (square.sum(-1) - 2 * product.sum(-1) + events.sum(-1)) / total
        reliability = np.where(n > 0, (p - events) ** 2 / n, 0).sum(-1) / total
        resolution = np.where(n > 0, (events / n - frequency[..., None]) ** 2 * n, 0).sum(-1) / total
        uncertainty = frequency * (1 - frequency)
        skill = np.where(uncertainty > 0, 1 - brier / uncertainty, np.nan)
        return {
            "brier": brier, "brier_skill": skill, "reliability": reliability, "resolution": resolution,
            "uncertainty": uncertainty, "within": brier - (reliability - resolution + uncertainty),
            "frequency": frequency, "mean_probability": p.sum(-1) / total, "cells": total,
        }  # fmt: skip


def compute_roc_curve(tally: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the hit rate and the false alarm rate of warnings from each class of the tally on.

    Args:
        tally: (..., classes, 5), see tally_probabilities.

    Returns:
        Hit rates and false alarm rates (..., classes + 1), ascending from 0 (no warning) to 1 (always a warning). NaN
        if the event occurred never or always.

    Source: Mason 1982.
    """
    n, events = tally[..., CELLS][..., ::-1], tally[..., EVENTS][..., ::-1]
    rates = []
    for part in (events, n - events):
        total = np.concatenate([np.zeros_like(part[..., :1]), np.cumsum(part, -1)], -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates.append(total / total[..., -1:])
    return rates[0], rates[1]


def compute_roc_area(tally: np.ndarray) -> np.ndarray:
    """Compute the area below the ROC curve by the trapezoidal rule: 0.5 without, 1 with perfect discrimination.

    Args:
        tally: (..., classes, 5), see tally_probabilities.

    Returns:
        (...), NaN if the event occurred never or always.
    """
    hits, alarms = compute_roc_curve(tally)
    return np.trapezoid(hits, alarms, axis=-1)


def merge_classes(tally: np.ndarray, steps: int = 10) -> np.ndarray:
    """Merge the classes of a tally into the classes round(steps * p) of a reliability diagram.

    Args:
        tally: (..., classes, 5), see tally_probabilities.
        steps: number of steps from 0 to 1 of the diagram.

    Returns:
        (..., steps + 1, 5); the tally itself if it has no more classes.
    """
    classes = tally.shape[-2] - 1
    if classes <= steps:
        return tally
    number = np.rint(np.arange(classes + 1) * steps / classes).astype(int)
    merged = np.zeros((*tally.shape[:-2], steps + 1, tally.shape[-1]))
    for k in range(steps + 1):
        merged[..., k, :] = tally[..., number == k, :].sum(-2)
    return merged


def resample_tallies(tallies: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Draw bootstrap samples of independent parts of a sample, such as initialization times, and add their tallies.

    Args:
        tallies: (parts, classes, 5).
        draws: number of bootstrap samples.
        seed: seed of the random numbers.

    Returns:
        (draws, classes, 5).
    """
    parts = len(tallies)
    weights = np.random.default_rng(seed).multinomial(parts, np.full(parts, 1 / parts), size=draws).astype(np.float64)
    return (weights @ tallies.reshape(parts, -1)).reshape(draws, *tallies.shape[1:])
