# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled files and of the baselines against the truth: pairs.py reads, scores.py sums, table.py shows."""

from .evaluate import BASELINES, evaluate, evaluate_files
from .table import EvaluationTable

__all__ = ["BASELINES", "EvaluationTable", "evaluate", "evaluate_files"]
