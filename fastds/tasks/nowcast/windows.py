# SPDX-License-Identifier: Apache-2.0
"""Rain threshold and window counts of nowcast scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

WET_RATE = 0.1  # mm/h; a wet area has at least this rate
WINDOW = 9  # side in cells of the windows of FSS and of nearby events


def count_in_windows(events: Tensor) -> Tensor:
    """Sum events, or counts of events, (n, H, W) over all windows of WINDOW x WINDOW cells inside the grid.

    Windows are smaller if the grid is smaller. The sums are differences of cumulative sums in int32.
    """
    window = min(WINDOW, *events.shape[-2:])
    sums = F.pad(events.cumsum(-2, dtype=torch.int32).cumsum(-1, dtype=torch.int32), (1, 0, 1, 0))
    rows = sums[:, window:] - sums[:, :-window]
    return rows[..., window:] - rows[..., :-window]
