# SPDX-License-Identifier: Apache-2.0
"""Tables of the INR study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import ResultTable, compare_with_paper
from fastds.studies.fields.crops import Crop
from fastds.studies.inr.config import DataConfig
from fastds.studies.inr.evaluation import PROTOCOLS
from fastds.studies.inr.methods import FACTORS, METHODS, PAPER_RANKING
from fastds.tasks.fields.config import DataConfig as TrainingData

# Protocols of the first method of a pair that are also compared with the second method's "clean" protocol.
_OURS_ALONE = ("agreeing", "mirrored")
# Method -> factor -> (crops, variables) mean squared errors (mean over the seeds).
Errors = Mapping[str, Mapping[str, np.ndarray]]


def compute_psnr(errors: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """Compute the PSNR of every crop as a mean over variables and seeds.

    Args:
        errors: (seeds, crops, variables) squared errors.
        value_range: (variables,) range of the training fields.

    Returns:
        (crops,) in dB.
    """
    return (10 * np.log10(np.square(value_range) / errors)).mean((0, 2))


def tabulate_psnr(
    protocol: str, results: Mapping[str, Mapping[str, np.ndarray]], labels: np.ndarray, sizes: Mapping[str, int]
) -> ResultTable:
    """Tabulate PSNR by method and factor.

    Args:
        protocol: name of the protocol.
        results: method -> factor -> dB of each crop.
        labels: (crops, 2), see make_crop_labels.
        sizes: method -> number of parameters.
    """
    rows = []
    for name in METHODS:
        found = results.get(name)
        if found is None:
            rows.append((name, "-", "not run", *["-"] * (len(FACTORS) - 1)))
            continue
        cells: list[Any] = [Estimate.from_samples(found[f], labels) if f in found else "-" for f in FACTORS]
        rows.append((name, f"{sizes[name]:,}" if name in sizes else "-", *cells))
    title = f"PSNR in dB {PROTOCOLS[protocol]}, mean over crops and variables"
    return ResultTable(title, ("method", "parameters", *(f"x{f}" for f in FACTORS)), rows, digits=2)


def tabulate_ranking(results: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], labels: np.ndarray) -> ResultTable:
    """Tabulate differences of PSNR by protocol and factor, next to those in the abstract.

    The abstract gives minimum differences for the factor 2. For these pairs, the first method with back-projection or
    mirrored inputs is also compared with the second method without them.

    Args:
        results: protocol -> method -> factor -> dB of each crop.
        labels: (crops, 2), see make_crop_labels.
    """
    rows: list[Sequence] = []
    ways = [(pair, p, p) for pair in PAPER_RANKING for p in PROTOCOLS]
    ways += [(pair, p, "clean") for pair in PAPER_RANKING if pair[2] is not None for p in _OURS_ALONE]
    for (better, other, least), protocol, of_other in ways:
        first, second = results[protocol], results[of_other]
        if better not in first or other not in second:
            continue
        protocol = protocol if of_other == protocol else f"{protocol} less {of_other}"
        for factor in (f for f in FACTORS if f in first[better] and f in second[other]):
            ours = Estimate.from_samples(first[better][factor] - second[other][factor], labels)
            published = least if factor == "2" else None
            *cells, conclusion = compare_with_paper(ours, published, 2)
            conclusion = "reproduced" if published is not None and ours.low > published else conclusion
            rows.append((f"{better} less {other}", protocol, f"x{factor}", *cells, conclusion))
    title = "Differences of PSNR in dB; agrees or opposite: the interval leaves out zero; reproduced: it is all above"
    heads = ("difference", "protocol", "factor", "paper", "ours", "conclusion")
    return ResultTable(title, heads, rows, digits=2, sign="+")


def tabulate_variables(errors: Errors, variables: list[str], units: list[str]) -> ResultTable:
    """Tabulate the root mean squared errors of the protocol "clean", in the units of the variables.

    Args:
        errors: method -> factor -> (crops, variables) mean squared errors.
        variables: names of the variables.
        units: units of the variables.

    Returns:
        The table.
    """
    rows = []
    for name, found in errors.items():
        for factor, mse in found.items():
            rows.append((name, f"x{factor}", *(f"{np.sqrt(m):.4g}" for m in mse.mean(0))))
    heads = ("method", "factor", *(f"{v} ({u})" for v, u in zip(variables, units, strict=True)))
    return ResultTable("Root mean squared errors from area means", heads, rows)


def tabulate_samples(config: DataConfig, data: TrainingData, crops: list[Crop]) -> ResultTable:
    """Tabulate the training, validation and test parts.

    Args:
        config: data options of the study.
        data: data configuration of the trainings.
        crops: test crops.
    """
    parts = [f"{first} to {stop - 1}" for first, stop in (data.train, data.validation, data.test)]
    counts = str(len({crop.time for crop in crops})), str(len(crops)), f"{config.crop} x {config.crop}"
    row = (config.path, ", ".join(config.variables), *parts, *counts)
    heads = ("file", "variables", "training columns", "validation", "test", "test times", "test crops", "points")
    return ResultTable("Columns of the file, and the test crops", heads, [row])
