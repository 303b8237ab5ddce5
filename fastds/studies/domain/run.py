# SPDX-License-Identifier: Apache-2.0
"""Whether errors grow with the score of the inputs: `fastds study domain --data.path FOLDER --model fczsm-small`."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import torch
from scipy.stats import rankdata

from fastds import models
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.ood.score import TOLERANCE
from fastds.report import check_report
from fastds.studies.command import Files
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import ResultTable
from fastds.studies.domain.cases import CASES, Case
from fastds.studies.report import write_rows, write_study
from fastds.training.command import read_command_line


@dataclasses.dataclass
class StudyConfig:
    """Error of a network over that of the simple method, beside the score of the inputs, on cases that no training saw
    and that are partly foreign on purpose.

    Args:
        data: the folder with the public files.
        model: a shipped name or a safetensors file with ranges in its card.
        threads: of torch; None leaves them as they are.
        report: an HTML page to write with the tables; None: none.
        leaderboard: a file of rows, see docs/models/leaderboard.md, that the correlation is added to; None: none.
    """

    data: Files
    model: str = "fczsm-small"
    threads: int | None = None
    report: str | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study domain`, into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study domain", "Errors beside the score of inputs.", {})


def study(config: StudyConfig) -> None:
    """What `fastds study domain` does: prints the tables, writes config.report."""
    if config.report is not None:
        check_report(config.report)
    network = models.load(config.model)
    if not network.card.input_ranges:
        raise ValueError(f"model {config.model} has no input_ranges in its card; fastds study input-ranges makes them")
    with inference_context(None, resolve_execution(None, config.threads)), torch.inference_mode():
        cases = list(CASES[network.card.task](network, pathlib.Path(config.data.path)))
    tables = [case_table(cases), summary(cases)]
    print("\n".join(table.markdown() for table in tables))
    if config.report is not None:
        write_study("Errors beside the score of the inputs", config, [table.rich() for table in tables])
    if config.leaderboard is not None:
        write_rows(config, network.card.name, [leaderboard_row(network.card.task, cases)])


def case_table(cases: list[Case]) -> ResultTable:
    """Every case, that with the largest score last."""
    ordered = sorted(cases, key=lambda case: case.domain.score)
    rows = [
        (c.label, f"{c.domain.score:.2f}", ", ".join(d.what for d in c.domain.outside), f"{c.ratio:.3f}")
        for c in ordered
    ]
    return ResultTable("Cases", ("case", "score", "outside", "error over the simple method's"), rows)


def summary(cases: list[Case]) -> ResultTable:
    """The rank correlation, and the errors of both sides of the threshold."""
    score, ratio, labels = _arrays(cases)
    rows = [("rank correlation of score and error", str(len(cases)), rank_correlation(score, ratio, labels))]
    for name, of in (("inside", score <= TOLERANCE), ("outside", score > TOLERANCE)):
        rows.append((f"median error, {name}", str(int(of.sum())), f"{np.median(ratio[of]):.3f}" if of.any() else "-"))
    return ResultTable(
        f"Of {len(np.unique(labels))} files or levels, by which intervals are drawn", ("", "cases", ""), rows, 2
    )


def leaderboard_row(task: str, cases: list[Case]) -> dict:
    """The rank correlation of score and error."""
    told = {"task": task, "data": "cases of fastds study domain", "better": "higher", "cases": len(cases)}
    score = "rank correlation of fastds_out_of_domain and of the error over the simple method's"
    return told | {"score": score, "value": rank_correlation(*_arrays(cases))}


def _arrays(cases: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, errors and labels (cases, 1) of blocks."""
    labels = np.unique([c.block for c in cases], return_inverse=True)[1].reshape(-1, 1)
    return np.array([c.domain.score for c in cases]), np.array([c.ratio for c in cases]), labels


def rank_correlation(score: np.ndarray, ratio: np.ndarray, labels: np.ndarray) -> Estimate:
    """Spearman's, with an interval over labels (cases, 1)."""

    def of(weights: np.ndarray) -> np.ndarray:
        drawn = (np.repeat(np.arange(len(score)), row.astype(int)) for row in weights)
        return np.array([np.corrcoef(rankdata(score[k]), rankdata(ratio[k]))[0, 1] for k in drawn])

    return Estimate.by(of, labels)
