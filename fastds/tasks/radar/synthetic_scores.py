# SPDX-License-Identifier: Apache-2.0
"""Error of a network and of advection on synthetic events, which needs no radar files."""

import dataclasses
import warnings

import numpy as np

from fastds.data import coarsen_dataset, synthetic_event
from fastds.models.card import Network
from fastds.tasks.radar.evaluation import evaluate
from fastds.tasks.radar.run import downscale

_SEEDS, _FRAMES, _SIDE = (101, 102), 5, 128
EVENTS = "two synthetic events"


@dataclasses.dataclass
class Errors:
    """Mean squared errors in dBZ^2 above 15 dBZ, of a network and of advection."""

    network: float
    advection: float


def score_synthetic_events(model: Network, device: str | None = None) -> Errors | None:
    """Compute the errors of a radar network at 2 km and 10 minutes; None for a network with additional inputs."""
    if model.config.get("in_channels", 1) > 1 or model.config.get("static_channels", 0):
        return None
    found = []
    for seed in _SEEDS:
        truth = synthetic_event(seed, _FRAMES, (_SIDE, _SIDE))
        coarse = coarsen_dataset(truth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warnings about out-of-distribution inputs
            fine = downscale(model, coarse, device=device).assign_attrs(fastds_model="network")
        rows = evaluate(fine, truth, coarse=coarse).rows
        found.append([rows[name]["mse_total_15"] for name in ("network", "advection")])
    return Errors(*np.mean(found, axis=0).tolist())
