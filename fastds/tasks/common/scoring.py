# SPDX-License-Identifier: Apache-2.0
"""Evaluations: the scores of items, each by itself, added up in order, so that it does not matter who makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fastds.tasks.common.progress import progress_bar


class Sums(dict):
    """Scores by name; += adds those of the same names."""

    def __iadd__(self, other: Sums) -> Sums:
        for name, scores in other.items():
            if name in self:
                self[name] += scores
            else:
                self[name] = scores
        return self


class Scoring(Protocol):
    """What an evaluation compares, item by item: a pair of frames, a field, or the forecasts of a start."""

    def __len__(self) -> int:
        """How many items there are."""

    def item(self, number: int) -> Any:
        """The fields of an item, read and made; None where not all are there."""

    def scores(self, item: Any) -> Sums:
        """The scores of an item alone."""


# The scores of items in order: makes them of the number of items, elsewhere than in this process.
Elsewhere = Callable[[int], Iterable[Sums]]


def added_up(
    scoring: Scoring,
    unit: str,
    progress: bool,
    seen: Callable[[Any], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Sums:
    """The scores of all items, added up. unit: what items are called in the progress. seen: called with every item that
    is there. elsewhere: makes the scores, None: this process."""

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
    """The scores of one item, none where it is not there."""
    item = scoring.item(number)
    if item is None:
        return Sums()
    if seen is not None:
        seen(item)
    return scoring.scores(item)
