# SPDX-License-Identifier: Apache-2.0
"""Scores of ensembles of downscaled radar fields on a test block: `fastds study radar --members=10`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastds.metrics import EnsembleScores, spectral_ratio
from fastds.models.ensembles.detail import ECHO
from fastds.tasks.radar.members import MIN_ECHO_SHARE, RadarEnsemble, make_details
from fastds.tasks.radar.motion import smooth_pair_flow

SCORES = "CRPS / MAE", "spread/skill", "detail", "detail of mean field", "rain area / truth's"
_BAND = (2.0, 4.0)
_TIMES = {"at input times": (0, 2), "between": (1,)}


def score_members(samples: Sequence[dict[str, Tensor]], model: nn.Module, count: int) -> dict[str, list[float]]:
    """Score an ensemble at input times and at interpolated times on pixels near echo.

    Args:
        samples: dicts of x (2, 1, h, w), y and valid (3, 1, H, W), normalised by the model's card, and beside (see
            radar.Block).
        model: the network.
        count: number of members.
    Returns:
        The numbers of SCORES, by kind of time: CRPS over the mean absolute error of the network's field; spread over
            skill; power at wavelengths of 2 to 4 pixels, of a member and of the network's field, over the truth's; area
            above the floor over the truth's.
    """
    members, span = RadarEnsemble(count, 0, model.card), model.card.ceiling_dbz - model.card.floor_dbz
    found = {times: _MemberSums() for times in _TIMES}
    for number, sample in enumerate(samples):
        x = sample["x"]
        before, behind = sample["beside"]
        flow = smooth_pair_flow(before, x[:, 0], behind)[None]
        with torch.inference_mode():
            y = model(x[None], flow=flow)[0, :, 0].clamp(0, 1)
        read = make_details(y, x[:, 0], flow[0], model.card)
        for times, places in _TIMES.items():
            for k in places:
                drawn = members.draw_between(read, number) if k == 1 else members.draw_at_input(read[k], (number, k))
                near = sample["valid"][k, 0] & (read[k].whole()[ECHO] > MIN_ECHO_SHARE)
                found[times].add(drawn * span, y[k] * span, sample["y"][k, 0] * span, near, sample["valid"][k, 0])
    return {times: sums.compute_means() for times, sums in found.items() if sums.count}


class _MemberSums:
    """Sums of errors, areas and spectra over fields."""

    def __init__(self):
        self.scores, self.count = EnsembleScores(), 0
        self.error, self.areas, self.details = np.zeros(2), np.zeros(2), []

    def add(self, drawn: Tensor, single: Tensor, truth: Tensor, near: Tensor, valid: Tensor) -> None:
        """Add one field.

        Args:
            drawn: (M, H, W) members, dB above the floor.
            single: (H, W) the network's field, dB above the floor.
            truth: (H, W) dB above the floor.
            near: (H, W) pixels that are scored.
            valid: (H, W) pixels where the truth is known.
        """
        if not near.any():
            return
        self.count += 1
        seen = torch.where(near, truth, torch.nan)
        self.scores.add(drawn, seen, torch.ones(truth.shape))
        self.error += [(single - truth)[near].abs().sum().item(), near.sum().item()]
        self.areas += [(drawn > 0)[:, near].double().mean(0).sum().item(), (truth > 0)[near].sum().item()]
        known = torch.where(valid, truth, torch.nan)[None]
        self.details.append([spectral_ratio(z[None], known, 0.0, (_BAND,))[_BAND] for z in (drawn[0], single)])

    def compute_means(self) -> list[float]:
        """Compute the numbers of SCORES."""
        scores, error = self.scores.means(), self.error[0] / self.error[1]
        detail = np.nanmean(self.details, 0)
        return [scores["crps"] / error, scores["spread_skill"], *detail, self.areas[0] / self.areas[1]]
