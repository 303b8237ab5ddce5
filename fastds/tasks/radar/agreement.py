# SPDX-License-Identifier: Apache-2.0
"""Fine fields that agree with the coarse ones, where it is known in which way those average finer cells."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.data.radar.preparation import coarsen
from fastds.models.baselines import advection

PASSES = 4  # more of them change the squared error by less than 0.1 %
# In plain means, which hold pixels without echo, too, cells count whose pixels are all so far above the floor.
CLEAR_DB = 4.0


def one_band(shape: torch.Size, motion: float) -> list[tuple[slice, slice, slice]]:
    """All rows of the coarse grid, the rows that are read for them, and their place in those on the fine grid."""
    return [(slice(0, shape[0]), slice(0, shape[0]), slice(None))]


def agree(
    y: Tensor, x: Tensor, flow: Tensor, known: Tensor, coarsened: str, span: float, bands: Callable = one_band
) -> None:
    """Correct fine fields, in place, so that averaging them nearly gives the coarse fields.

    At the input times, k = 0 and 2, PASSES times: y_k += bilinear(x_k - average(y_k)). Between them y_1 gets the mean
    of both corrections, averaged over coarse cells and moved half-way along the flow.

    Args:
        y: (3, r h, r w), what a network made of x, both scaled to [0, 1] above its floor.
        x: (2, h, w). flow: (1, 2, 2, h, w), of x as baselines.optical_flow gives it.
        known: (2, h, w) bool, cells that are not missing; others correct nothing.
        coarsened: how x averages finer cells, see fastds.data.coarsen.
        span: dB from 0 to 1.
        bands: as one_band, in pieces that overlap by the motion and more than PASSES rows, which bound memory.

    Source: Irani and Peleg 1991, Improving Resolution by Image Registration (iterative back-projection).
    """
    factor, corrections = y.shape[-1] // x.shape[-1], torch.zeros_like(x)

    def finer(rows: slice) -> slice:
        return slice(factor * rows.start, factor * rows.stop)

    for k, fine in enumerate((y[0], y[2])):
        before = fine.clone()
        for rows, window, inner in bands(x.shape[1:], 0.0):
            part = before[finer(window)].clone()
            _correct(part, x[k, window], known[k, window], coarsened, span)
            fine[finer(rows)] = part[inner]
        corrections[k] = coarsen(fine - before, factor)
    for rows, window, inner in bands(x.shape[1:], flow.abs().max().item()):
        halves = (1 + corrections[None, :, None, window]) / 2  # advection takes numbers in [0, 1]
        moved = advection(halves, factor, flow[..., window, :][None])[0, 1, 0, inner]
        y[1, finer(rows)].add_(2 * moved - 1).clamp_(0.0, 1.0)


def _correct(fine: Tensor, x: Tensor, known: Tensor, coarsened: str, span: float) -> None:
    """The passes of agree for one field. Plain means are those of dBZ where everything is above the floor."""
    factor, plain = fine.shape[-1] // x.shape[-1], coarsened == "plain_dbz"
    for _ in range(PASSES):
        average = coarsen(fine * span, factor, "dbz" if plain else coarsened, floor=0.0) / span
        counts = known & (-F.max_pool2d(-fine[None], factor)[0] > CLEAR_DB / span) if plain else known
        wrong = torch.where(counts, x - average, 0.0)
        fine += F.interpolate(wrong[None, None], scale_factor=factor, mode="bilinear", align_corners=False)[0, 0]
        fine.clamp_(0.0, 1.0)
