# SPDX-License-Identifier: Apache-2.0
"""Rank correlation of a network's error with the out-of-distribution score of its inputs: `fastds study domain`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import cast

import numpy as np
import torch
from scipy.stats import rankdata

from fastds import models
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.ood.score import TOLERANCE
from fastds.models.card import Network
from fastds.report import check_report
from fastds.studies.command import Files
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import ResultTable
from fastds.studies.domain.cases import CASES, Case
from fastds.studies.report import write_rows, write_study
from fastds.training.command import read_command_line


@dataclasses.dataclass
class StudyConfig:
    """Error of a network relative to a baseline, compared with the out-of-distribution score of the inputs.

    The cases are held-out, and some are chosen to be unlike the training data.

    Args:
        data: folder with the public files.
        model: name of a shipped model or path of a safetensors file, with input ranges in its model card.
        threads: number of threads of torch; None leaves the number unchanged.
        report: HTML page for the tables; None writes none.
        leaderboard: file of leaderboard rows (see docs/models/leaderboard.md) to which the correlation is added; None
            adds none.
    """

    data: Files
    model: str = "fczsm-small"
    threads: int | None = None
    report: str | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study domain` into a StudyConfig."""
    return read_command_line(
        StudyConfig,
        arguments,
        "fastds study domain",
        "Errors compared with the out-of-distribution score of the inputs.",
        {},
    )


def study(config: StudyConfig) -> None:
    """Run `fastds study domain`: print the tables and write config.report."""
    if config.report is not None:
        check_report(config.report)
    network: Network = models.load(config.model)
    if not network.card.input_ranges:
        raise ValueError(f"model {config.model} has no input_ranges in its card; fastds study input-ranges makes them")
    with inference_context(None, resolve_execution(None, config.threads)), torch.inference_mode():
        cases = list(CASES[network.card.task](network, pathlib.Path(config.data.path)))
    tables = [tabulate_cases(cases), summarize(cases)]
    print("\n".join(table.to_markdown() for table in tables))
    if config.report is not None:
        write_study(
            "Errors and the out-of-distribution score of the inputs", config, [table.to_rich() for table in tables]
        )
    if config.leaderboard is not None:
        write_rows(config, network.card.name, [make_leaderboard_row(network.card.task, cases)])


def tabulate_cases(cases: list[Case]) -> ResultTable:
    """Tabulate all cases in ascending order of the score."""
    ordered = sorted(cases, key=lambda case: cast(float, case.domain.score))
    rows = [
        (c.label, f"{c.domain.score:.2f}", ", ".join(d.what for d in c.domain.outside), f"{c.ratio:.3f}")
        for c in ordered
    ]
    return ResultTable("Cases", ("case", "score", "outside", "error over the simple method's"), rows)


def summarize(cases: list[Case]) -> ResultTable:
    """Tabulate the rank correlation of score and error, and the median errors.

    One median is over the cases with a score up to TOLERANCE, the other over those above.
    """
    score, ratio, labels = _to_arrays(cases)
    rows: list[tuple[str | Estimate, ...]]
    rows = [("rank correlation of score and error", str(len(cases)), compute_rank_correlation(score, ratio, labels))]
    for name, of in (("inside", score <= TOLERANCE), ("outside", score > TOLERANCE)):
        rows.append((f"median error, {name}", str(int(of.sum())), f"{np.median(ratio[of]):.3f}" if of.any() else "-"))
    return ResultTable(
        f"Of {len(np.unique(labels))} files or levels, by which intervals are drawn", ("", "cases", ""), rows, 2
    )


def make_leaderboard_row(task: str, cases: list[Case]) -> dict:
    """Make the leaderboard row of the rank correlation of score and error."""
    row = {"task": task, "data": "cases of fastds study domain", "better": "higher", "cases": len(cases)}
    score = "rank correlation of fastds_out_of_domain and of the error over the simple method's"
    return row | {"score": score, "value": compute_rank_correlation(*_to_arrays(cases))}


def _to_arrays(cases: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, errors, and block labels (cases, 1)."""
    labels = np.unique([c.block for c in cases], return_inverse=True)[1].reshape(-1, 1)
    return np.array([c.domain.score for c in cases]), np.array([c.ratio for c in cases]), labels


def compute_rank_correlation(score: np.ndarray, ratio: np.ndarray, labels: np.ndarray) -> Estimate:
    """Compute the rank correlation of Spearman with an interval.

    Args:
        score: (cases,).
        ratio: (cases,).
        labels: (cases, 1) blocks for the bootstrap.
    """

    def of(weights: np.ndarray) -> np.ndarray:
        drawn = (np.repeat(np.arange(len(score)), row.astype(int)) for row in weights)
        return np.array([np.corrcoef(rankdata(score[k]), rankdata(ratio[k]))[0, 1] for k in drawn])

    return Estimate.from_statistic(of, labels)
