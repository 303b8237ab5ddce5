# SPDX-License-Identifier: Apache-2.0
"""What the scores of nowcasts share: from where on it rains, and the windows that events are looked for in."""

import torch
import torch.nn.functional as F
from torch import Tensor

WET_RATE = 0.1  # mm/h, of a wet area
WINDOW = 9  # side of the windows of FSS and of nearby events, cells


def window_counts(events: Tensor) -> Tensor:
    """Sums of events or counts of them (n, H, W) in every window of WINDOW cells a side, or of the grid where that is
    smaller, inside the grid: differences of sums from the corner, int32."""
    window = min(WINDOW, *events.shape[-2:])
    sums = F.pad(events.cumsum(-2, dtype=torch.int32).cumsum(-1, dtype=torch.int32), (1, 0, 1, 0))
    rows = sums[:, window:] - sums[:, :-window]
    return rows[..., window:] - rows[..., :-window]
