# SPDX-License-Identifier: Apache-2.0
"""Verification scores of fields, sequences, ensembles and nowcasts."""

from fastds.metrics.ensembles import (
    compute_crps_parts,
    crps,
    rank_histogram,
    reliability_counts,
    spread,
    spread_skill,
    sum_crps_bins,
)
from fastds.metrics.errors import EVALUATION_FLOORS, error_sums, interior, mse_total, radar_errors, ssim
from fastds.metrics.fields import detail_ratio, latitude_weights, power_spectrum, psnr, spectral_ratio
from fastds.metrics.gridded import EnsembleScores, FieldScores
from fastds.metrics.nowcasts import BALANCE_WEIGHTS, NowcastScores, mean_of_defined
from fastds.metrics.probabilities import (
    compute_brier_scores,
    compute_roc_area,
    compute_roc_curve,
    convert_member_counts,
    merge_classes,
    resample_tallies,
    tally_probabilities,
)
from fastds.metrics.sequences import daily_series, field_scores
from fastds.metrics.skill import csi, fss

__all__ = [
    "BALANCE_WEIGHTS",
    "EVALUATION_FLOORS",
    "EnsembleScores",
    "FieldScores",
    "NowcastScores",
    "compute_brier_scores",
    "compute_crps_parts",
    "compute_roc_area",
    "compute_roc_curve",
    "convert_member_counts",
    "crps",
    "csi",
    "daily_series",
    "detail_ratio",
    "error_sums",
    "field_scores",
    "fss",
    "interior",
    "latitude_weights",
    "mean_of_defined",
    "merge_classes",
    "mse_total",
    "power_spectrum",
    "psnr",
    "radar_errors",
    "rank_histogram",
    "reliability_counts",
    "resample_tallies",
    "spectral_ratio",
    "spread",
    "spread_skill",
    "ssim",
    "sum_crps_bins",
    "tally_probabilities",
]
