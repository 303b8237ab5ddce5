# SPDX-License-Identifier: Apache-2.0
"""The study's tables: PSNR and RMSE by method and factor, differences with bootstrap intervals."""

from collections.abc import Iterable

import numpy as np

from fastds.studies.common.bootstrap import interval
from fastds.studies.common.tables import markdown

OURS = "inr-small"
# What inr-small, its variants and trained weights are compared with.
REFERENCES = ("bicubic", "bicubic-0.75", "static residual", "regression per point", "liif", "lte", "edsr-x2", OURS)


def render(runs: list[dict]) -> str:
    """Markdown: PSNR per variable and factor, RMSE in units, differences of every method to the references.

    Runs of one method with several seeds are averaged; intervals are those of `interval`.
    """
    methods = group(runs)
    names = runs[0]["variables"]
    parts = [_absolute(methods, names)]
    parts += [_differences(methods, names, ours) for ours in methods if ours.startswith((OURS, "weights "))]
    parts.append(_costs(methods))
    return "\n".join(parts)


def group(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """Runs by method, in order of name and seed."""
    methods: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda r: (r["method"], r.get("seed", 0))):
        methods.setdefault(run["method"], []).append(run)
    return methods


def decibel(run: dict, scale: str) -> np.ndarray:
    """(crops, channels) PSNR by the range of the training data."""
    return 10 * np.log10(np.square(run["value_range"]) / np.asarray(run["mse"][scale]))


def drawn(run: dict) -> np.ndarray:
    """(crops, 2): what the bootstrap draws, group of times and latitude band."""
    return np.asarray(run["crops"])[:, :2] // [run.get("together", 1), 1]


def _absolute(methods: dict, names: list[str]) -> str:
    rows = []
    for method, runs in methods.items():
        for scale in runs[0]["mse"]:
            db = np.mean([decibel(r, scale).mean(0) for r in runs], 0)
            pooled = np.mean([r["mse"][scale] for r in runs], (0, 1))
            ranges = np.square(runs[0]["value_range"])
            cells = [f"{v:.2f} ({np.sqrt(m):.4g})" for v, m in zip(db, pooled, strict=True)]
            rows.append([method, scale, *cells, f"{db.mean():.2f}", f"{(10 * np.log10(ranges / pooled)).mean():.2f}"])
    head = ["method", "factor", *(f"{n}: dB (RMSE)" for n in names), "mean dB", "dB of mean MSE"]
    return "PSNR, mean over the crops and then the variables:\n\n" + markdown(head, rows)


def _differences(methods: dict, names: list[str], ours: str) -> str:
    """A method minus each reference, with intervals, and the mean of each seed; weights against untrained methods."""
    rows, trained = [], "seed" in methods[ours][0]
    for other in (m for m in REFERENCES if m in methods and m != ours and (trained or "seed" not in methods[m][0])):
        pairs = list(_paired(methods[ours], methods[other]))
        for scale in (s for s in methods[other][0]["mse"] if pairs and s in methods[ours][0]["mse"]):
            each = [decibel(a, scale) - decibel(b, scale) for a, b in pairs]
            mean, labels = np.mean(each, 0), drawn(pairs[0][0])
            cells = [_with_interval(mean[:, c], labels) for c in range(len(names))]
            seeds = ", ".join(f"{e.mean():+.2f}" for e in each)
            rows.append([f"{ours} - {other}", scale, _with_interval(mean.mean(1), labels), *cells, seeds])
    head = ["difference", "factor", "mean dB [95 %]", *names, "mean of each seed"]
    return f"{ours}, differences in dB:\n\n" + markdown(head, rows)


def _paired(ours: list[dict], theirs: list[dict]) -> Iterable[tuple[dict, dict]]:
    """Runs of equal seed; an interpolation, which has none, goes with every run."""
    if "seed" not in theirs[0]:
        return ((run, theirs[0]) for run in ours)
    by_seed = {run["seed"]: run for run in theirs}
    return ((run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed)


def _with_interval(values: np.ndarray, labels: np.ndarray) -> str:
    low, high = interval(values, labels)
    return f"{values.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def _costs(methods: dict) -> str:
    rows = [
        [name, str(len(runs)), str(runs[0]["steps"]), f"{runs[0]['parameters']:,}", f"{_minutes(runs):.1f}"]
        for name, runs in methods.items()
        if "seed" in runs[0]
    ]
    return "Cost:\n\n" + markdown(["method", "seeds", "steps", "parameters", "CPU minutes a run"], rows)


def _minutes(runs: list[dict]) -> float:
    return float(np.mean([r["train_cpu_s"] for r in runs])) / 60
