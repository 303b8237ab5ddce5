# SPDX-License-Identifier: Apache-2.0
"""Scores of generators and of baselines on a region with known fine fields."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastds import metrics
from fastds.data.samples.fields import coarsen_fields
from fastds.models.baselines import interpolate
from fastds.models.baselines.regression import LocationRidge, StaticResidual
from fastds.models.card import Network

INTERPOLATIONS = [(method, align) for method in ("lanczos", "bilinear", "bicubic") for align in ("center", "grid")]
RIDGE_PENALTY = 10.0  # penalty in squared units of the field times the number of samples


def run_network(network: Network, coarse: Tensor, **noise) -> Tensor:
    """Run a network.

    Args:
        network: HumidityGenerator or a network without noise.
        coarse: coarse fields, normalised.
        noise: further arguments of HumidityGenerator.forward, ignored for networks without noise.
    """
    return network(coarse, **noise) if hasattr(network, "noise_shape") else network(coarse)


def compute_baselines(coarse: Tensor, early: tuple[Tensor, Tensor], scale: int, align: str) -> dict[str, Tensor]:
    """Compute the baselines: interpolations, and two regressions that are fitted to earlier times of the region.

    Args:
        coarse: (T, h, w), in the unit of the field.
        early: coarse and fine fields of other times of the same region.
        scale: scale factor.
        align: convention of the coarse grid, "center" or "grid".

    Returns:
        Fine fields (T, H, W) by name.
    """
    fields = {}
    for method, convention in INTERPOLATIONS:
        name = method if convention == align else f"{method}, wrong convention"
        fields[name] = interpolate(coarse, scale, method, convention)
    fields["static residual map"] = StaticResidual(scale, align).fit(*early)(coarse)
    fields["per-location ridge"] = LocationRidge(scale, RIDGE_PENALTY).fit(*early)(coarse)
    return fields


def evaluate_region(networks: dict[str, Network], fine: Tensor, members: int, seed: int) -> dict[str, dict]:
    """Compute the scores of all methods on the second half of the times of a region.

    Args:
        networks: name -> network with .card (offset, range, coarsening), all with one scale factor and coarsening.
            Their fields are clipped to the card's valid_range.
        fine: (T >= 4, H, W), in the unit of the field.
        members: number of ensemble members, at least 2.
        seed: random seed of the first member.

    Returns:
        Name -> scores: field_scores and "power" at the shortest wavelengths relative to the truth. A network with noise
        has three rows: without noise, one member, and the ensemble mean, which also has "crps", "spread_skill" and
        "rank_histogram".
    """
    first = next(iter(networks.values()))
    card, scale = first.card, first.config["scale"]
    align = "grid" if card.coarsening == "decimate" else "center"
    h, w = (n - n % scale for n in fine.shape[1:])
    fine = fine[:, :h, :w]
    coarse, half = coarsen_fields(fine, scale, card.coarsening), len(fine) // 2
    early, (x, truth) = (coarse[:half], fine[:half]), (coarse[half:], fine[half:])
    table = {
        name: compute_scores(field, truth, card.range)
        for name, field in compute_baselines(x, early, scale, align).items()
    }
    for name, network in networks.items():
        table |= score_network(name, network, x, truth, members, seed)
    return table


def score_network(
    name: str, network: Network, coarse: Tensor, truth: Tensor, members: int, seed: int
) -> dict[str, dict]:
    """Return the rows of a network in the table of evaluate_region.

    Args:
        name: name of the network.
        network: network with a card.
        coarse: (T, h, w), in the unit of the field.
        truth: (T, H, W), in the unit of the field.
        members: number of ensemble members.
        seed: random seed of the first member.
    """
    card = network.card
    x = ((coarse - card.offset) / card.range)[None, :, None].float()

    def physical(y: Tensor) -> Tensor:
        return card.denormalise(y[..., 0, :, 0, :, :])

    with torch.no_grad():
        noise_free = compute_scores(physical(run_network(network, x, noise="zero")), truth, card.range)
    if not hasattr(network, "noise_shape"):
        return {name: noise_free}
    draws = physical(network.ensemble(x, members, seed))
    mean = compute_scores(draws.mean(0), truth, card.range) | {
        "crps": metrics.crps(draws, truth),
        "spread_skill": metrics.spread_skill(draws, truth),
        "rank_histogram": metrics.rank_histogram(draws, truth),
    }
    rows: dict[str, Any] = {
        "no noise": noise_free,
        "one member": compute_scores(draws[0], truth, card.range),
        "ensemble mean": mean,
    }
    return {f"{name}, {row}": values for row, values in rows.items()}


def compute_scores(field: Tensor, truth: Tensor, data_range: float) -> dict[str, float]:
    """Compute field_scores, and the power at the shortest wavelengths relative to the truth.

    Args:
        field: (T, H, W), predicted field, in the unit of the field.
        truth: (T, H, W), in the same unit.
        data_range: in the same unit, see field_scores.

    Returns:
        Scores by name.
    """
    bands = ((2.0, 4.0), (4.0, 8.0))
    power = metrics.spectral_ratio(field, truth, floor=-math.inf, bands=bands)
    return metrics.field_scores(field, truth, data_range) | {f"power {a:g}-{b:g} px": power[a, b] for a, b in bands}


def format_table(table: dict[str, dict]) -> str:
    """Format the table of evaluate_region as text."""
    columns = ["mse", "mae", "ssim", "psnr", "acc", "tcc", "power 2-4 px", "power 4-8 px"]
    lines = [f"{'':36}" + "".join(f"{c:>13}" for c in columns)]
    for name, row in table.items():
        lines.append(f"{name:36}" + "".join(f"{row[c]:13.3f}" for c in columns))
    for name, row in table.items():
        if "crps" in row:
            ranks = " ".join(f"{share:.3f}" for share in row["rank_histogram"])
            lines.append(f"{name}: CRPS {row['crps']:.3f}, spread/skill {row['spread_skill']:.2f}, ranks {ranks}")
    return "\n".join(lines)
