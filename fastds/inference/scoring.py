# SPDX-License-Identifier: Apache-2.0
"""Scores that are computed item by item and summed in order, so that the result does not depend on the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fastds.inference.progress import progress_bar


class ScoreSums(dict):
    """Scores by name; `+=` adds scores of the same name."""

    def __iadd__(self, other: ScoreSums) -> ScoreSums:
        for name, scores in other.items():
            if name in self:
                self[name] += scores
            else:
                self[name] = scores
        return self


class EvaluationItems(Protocol):
    """Items of an evaluation and their scores.

    An item is a pair of frames, a field, or the forecasts of one initialization time.
    """

    def __len__(self) -> int:
        """Return the number of items."""

    def read_item(self, number: int) -> Any:
        """Read an item and compute its predictions; None if data are missing."""

    def score(self, item: Any) -> ScoreSums:
        """Return the scores of a single item."""


# Function of the number of items that yields the scores of all items in order, computed in other processes.
ScoreItems = Callable[[int], Iterable[ScoreSums]]


def sum_scores(
    scoring: EvaluationItems,
    unit: str,
    progress: bool,
    on_item: Callable[[Any], None] | None = None,
    score_items: ScoreItems | None = None,
) -> ScoreSums:
    """Sum the scores of all items.

    Args:
        scoring: items and their scores.
        unit: name of the items in the progress bar, in the plural.
        progress: show a progress bar.
        on_item: function that is called with each item; None: no function.
        score_items: function that computes the scores in other processes; None: this process computes them.
    """

    def score_in_process(count: int) -> Iterable[ScoreSums]:
        for number in range(count):
            yield score_item(scoring, number, on_item)

    total = ScoreSums()
    with progress_bar(progress, len(scoring), "evaluating", unit) as advance:
        for scores in (score_items or score_in_process)(len(scoring)):
            total += scores
            if advance is not None:
                advance()
    return total


def score_item(scoring: EvaluationItems, number: int, on_item: Callable[[Any], None] | None = None) -> ScoreSums:
    """Compute the scores of one item.

    Args:
        scoring: items and their scores.
        number: index of the item.
        on_item: function that is called with the item if it has no missing data; None: no function.

    Returns:
        Scores of the item; empty if the item has missing data.
    """
    item = scoring.read_item(number)
    if item is None:
        return ScoreSums()
    if on_item is not None:
        on_item(item)
    return scoring.score(item)
