# SPDX-License-Identifier: Apache-2.0
"""Scores that are computed item by item and summed in order, so that the result does not depend on the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fastds.tasks.common.progress import progress_bar


class Sums(dict):
    """Scores by name; `+=` adds scores of the same name."""

    def __iadd__(self, other: Sums) -> Sums:
        for name, scores in other.items():
            if name in self:
                self[name] += scores
            else:
                self[name] = scores
        return self


class Scoring(Protocol):
    """Items of an evaluation (a pair of frames, a field, or the forecasts of one initialization time) and their scores."""

    def __len__(self) -> int:
        """Return the number of items."""

    def item(self, number: int) -> Any:
        """Read an item and compute its predictions; None if data are missing."""

    def scores(self, item: Any) -> Sums:
        """Return the scores of a single item."""


# Function of the number of items that yields the scores of all items in order, computed in other processes.
Elsewhere = Callable[[int], Iterable[Sums]]


def added_up(
    scoring: Scoring,
    unit: str,
    progress: bool,
    seen: Callable[[Any], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Sums:
    """Sum the scores of all items.

    Args:
        scoring: items and their scores.
        unit: name of the items in the progress bar, in the plural.
        progress: show a progress bar.
        seen: function that is called with each item; None: no function.
        elsewhere: function that computes the scores in other processes; None: this process computes them.
    """

    def here(count: int) -> Iterable[Sums]:
        for number in range(count):
            yield scores_of(scoring, number, seen)

    total = Sums()
    with progress_bar(progress, len(scoring), "evaluating", unit) as advance:
        for scores in (elsewhere or here)(len(scoring)):
            total += scores
            if advance is not None:
                advance()
    return total


def scores_of(scoring: Scoring, number: int, seen: Callable[[Any], None] | None = None) -> Sums:
    """Return the scores of one item; empty if the item has missing data."""
    item = scoring.item(number)
    if item is None:
        return Sums()
    if seen is not None:
        seen(item)
    return scoring.scores(item)
