# SPDX-License-Identifier: Apache-2.0
"""Comparison of trained weights with the baseline of their task, for the model card and as text."""

import os

from fastds.models import load_card


def compare_to_baseline(method: str, score: str, value: float, simple: float, higher: bool = False) -> dict[str, dict]:
    """Return the entry of a card's metrics that compares weights with a baseline on the same validation samples.

    Args:
        method: name of the baseline.
        score: name and unit of the score.
        value: score of the weights.
        simple: score of the baseline.
        higher: whether higher scores are better.

    Returns:
        A dict for ModelCard.metrics, which ModelCard.worse_than reads.
    """
    better = value > simple if higher else value < simple
    entry = {"name": method, "score": score, "own": float(value), "simple": float(simple), "better": bool(better)}
    return {"simple_method": entry}


def format_comparison(weights: str | os.PathLike) -> str:
    """Describe how a weights file compares with its baseline, or return "" if its card has no comparison."""
    card = load_card(weights)
    entry = card.metrics.get("simple_method")
    if not entry:
        return ""
    comparison = f"than {entry['name']} ({entry['score']} on the validation samples: {entry['own']:.4g} "
    comparison += f"against {entry['simple']:.4g})"
    if card.worse_than:
        return f"Result: no better {comparison}. This is noted in the weights file; train longer or on more files."
    return f"Result: better {comparison}."
