# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled and nowcast files and of the baselines against the truth.

pairs.py reads, scores.py sums and table.py shows for downscaling (evaluate.py), nowcasts.py and nowcast_table.py for
forecasts.
"""

from .evaluate import BASELINES, evaluate, evaluate_files
from .nowcast_table import NowcastTable, csi_difference
from .nowcasts import Comparison, evaluate_nowcast, evaluate_nowcast_files, window_scores
from .table import EvaluationTable

__all__ = [
    "BASELINES", "Comparison", "EvaluationTable", "NowcastTable", "csi_difference", "evaluate", "evaluate_files",
    "evaluate_nowcast", "evaluate_nowcast_files", "window_scores",
]  # fmt: skip
