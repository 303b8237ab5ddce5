# SPDX-License-Identifier: Apache-2.0
"""What a training's weights score against the simple method of their task, in their card and in words."""

import os

from fastds.models import load_card


def against(method: str, score: str, own: float, simple: float, higher: bool = False) -> dict[str, dict]:
    """The part of a card's metrics that says how weights and a simple method score on the same validation samples.

    score: its name and unit. higher: whether more of it is better. ModelCard.lost_to reads it.
    """
    better = own > simple if higher else own < simple
    found = {"name": method, "score": score, "own": float(own), "simple": float(simple), "better": bool(better)}
    return {"simple_method": found}


def verdict(weights: str | os.PathLike) -> str:
    """One sentence on a file of weights; "" where its card does not compare them."""
    card = load_card(weights)
    found = card.metrics.get("simple_method")
    if not found:
        return ""
    beside = f"than {found['name']} ({found['score']} on the validation samples: {found['own']:.4g} "
    beside += f"against {found['simple']:.4g})"
    if card.lost_to:
        return f"Result: no better {beside}. This is noted in the weights file; train longer or on more files."
    return f"Result: better {beside}."
