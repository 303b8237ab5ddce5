# SPDX-License-Identifier: Apache-2.0
"""Tables of the study of fields: PSNR and RMSE by method and factor, and differences with bootstrap intervals."""

from collections.abc import Iterable

import numpy as np

from fastds.studies.common.bootstrap import compute_interval
from fastds.studies.common.tables import format_markdown

OURS = "inr-small"
# Methods with which inr-small, its variants and trained weights are compared.
REFERENCES = ("bicubic", "bicubic-0.75", "static residual", "regression per point", "liif", "lte", "edsr-x2", OURS)


def render(runs: list[dict]) -> str:
    """Format all tables as Markdown: PSNR and RMSE by variable and factor, differences from the references, and costs.

    Runs of one method with several seeds are averaged. Intervals are by compute_interval.
    """
    methods = group_runs(runs)
    names = runs[0]["variables"]
    parts = [_format_scores(methods, names)]
    parts += [_format_differences(methods, names, ours) for ours in methods if ours.startswith((OURS, "weights "))]
    parts.append(_format_costs(methods))
    return "\n".join(parts)


def group_runs(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """Group runs by method, sorted by name and seed."""
    methods: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda r: (r["method"], r.get("seed", 0))):
        methods.setdefault(run["method"], []).append(run)
    return methods


def compute_psnr(run: dict, scale: str) -> np.ndarray:
    """Compute PSNR (crops, channels) relative to the range of the training data."""
    return 10 * np.log10(np.square(run["value_range"]) / np.asarray(run["mse"][scale]))


def get_crop_labels(run: dict) -> np.ndarray:
    """Return (crops, 2), the labels that the bootstrap draws: group of times and latitude band."""
    return np.asarray(run["crops"])[:, :2] // [run.get("together", 1), 1]


def _format_scores(methods: dict, names: list[str]) -> str:
    rows = []
    for method, runs in methods.items():
        for scale in runs[0]["mse"]:
            db = np.mean([compute_psnr(r, scale).mean(0) for r in runs], 0)
            pooled = np.mean([r["mse"][scale] for r in runs], (0, 1))
            ranges = np.square(runs[0]["value_range"])
            cells = [f"{v:.2f} ({np.sqrt(m):.4g})" for v, m in zip(db, pooled, strict=True)]
            rows.append([method, scale, *cells, f"{db.mean():.2f}", f"{(10 * np.log10(ranges / pooled)).mean():.2f}"])
    head = ["method", "factor", *(f"{n}: dB (RMSE)" for n in names), "mean dB", "dB of mean MSE"]
    return "PSNR, mean over the crops and then the variables:\n\n" + format_markdown(head, rows)


def _format_differences(methods: dict, names: list[str], ours: str) -> str:
    """Format the differences of a method from each reference, with intervals and the mean of each seed. Weights are
    only compared with untrained methods."""
    rows, trained = [], "seed" in methods[ours][0]
    for other in (m for m in REFERENCES if m in methods and m != ours and (trained or "seed" not in methods[m][0])):
        pairs = list(_pair_runs(methods[ours], methods[other]))
        for scale in (s for s in methods[other][0]["mse"] if pairs and s in methods[ours][0]["mse"]):
            each = [compute_psnr(a, scale) - compute_psnr(b, scale) for a, b in pairs]
            mean, labels = np.mean(each, 0), get_crop_labels(pairs[0][0])
            cells = [_format_interval(mean[:, c], labels) for c in range(len(names))]
            seeds = ", ".join(f"{e.mean():+.2f}" for e in each)
            rows.append([f"{ours} - {other}", scale, _format_interval(mean.mean(1), labels), *cells, seeds])
    head = ["difference", "factor", "mean dB [95 %]", *names, "mean of each seed"]
    return f"{ours}, differences in dB:\n\n" + format_markdown(head, rows)


def _pair_runs(ours: list[dict], theirs: list[dict]) -> Iterable[tuple[dict, dict]]:
    """Pair runs of equal seed; an interpolation, which has no seed, is paired with every run."""
    if "seed" not in theirs[0]:
        return ((run, theirs[0]) for run in ours)
    by_seed = {run["seed"]: run for run in theirs}
    return ((run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed)


def _format_interval(values: np.ndarray, labels: np.ndarray) -> str:
    low, high = compute_interval(values, labels)
    return f"{values.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def _format_costs(methods: dict) -> str:
    rows = [
        [name, str(len(runs)), str(runs[0]["steps"]), f"{runs[0]['parameters']:,}", f"{_compute_minutes(runs):.1f}"]
        for name, runs in methods.items()
        if "seed" in runs[0]
    ]
    return "Cost:\n\n" + format_markdown(["method", "seeds", "steps", "parameters", "CPU minutes a run"], rows)


def _compute_minutes(runs: list[dict]) -> float:
    return float(np.mean([r["train_cpu_s"] for r in runs])) / 60
