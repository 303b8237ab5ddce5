# SPDX-License-Identifier: Apache-2.0
"""Back-projection: adjust fine radar frames so that their averages over coarse cells nearly equal the coarse frames."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.data.radar.preparation import coarsen
from fastds.models.baselines import advection

ITERATIONS = 4  # more iterations change the squared error by less than 0.1 %
# With plain_dbz, whose means include pixels without echo, a cell is corrected only if all its fine pixels are this far
# above the floor.
CLEAR_DB = 4.0


def make_single_band(shape: torch.Size, motion: float) -> list[tuple[slice, slice, slice]]:
    """Return a single band that covers the whole grid, in the form of the argument `bands` of back_project.

    A band has three slices: its rows, the rows that are read, and the position of its rows among the latter on the fine
    grid.
    """
    return [(slice(0, shape[0]), slice(0, shape[0]), slice(None))]


def back_project(
    y: Tensor, x: Tensor, flow: Tensor, known: Tensor, coarsened: str, span: float, bands: Callable = make_single_band
) -> None:
    """Correct fine frames, in place, so that their averages nearly equal the coarse frames.

    Input times (k = 0 and 2), ITERATIONS times: y_k += bilinear(x_k - average(y_k)). The frame y_1 between them is
    corrected by the mean of both corrections, averaged over coarse cells and moved half-way along the flow.

    Args:
        y: (3, r h, r w), network output for x, scaled to [0, 1] above the floor.
        x: (2, h, w), coarse frames with the same scaling.
        flow: (1, 2, 2, h, w), optical flow of x, see baselines.optical_flow.
        known: (2, h, w) bool, cells that are not missing; other cells are not corrected.
        coarsened: how x averages finer cells, see fastds.data.coarsen.
        span: difference in dB between the values 0 and 1.
        bands: function that divides the rows into bands, see make_single_band. Bands limit the memory. The rows that
            are read must exceed a band by the motion and by more than ITERATIONS rows.

    Source: Irani and Peleg 1991, Improving Resolution by Image Registration (iterative back-projection).
    """
    factor, corrections = y.shape[-1] // x.shape[-1], torch.zeros_like(x)

    def refine_rows(rows: slice) -> slice:
        return slice(factor * rows.start, factor * rows.stop)

    for k, fine in enumerate((y[0], y[2])):
        before = fine.clone()
        for rows, window, inner in bands(x.shape[1:], 0.0):
            part = before[refine_rows(window)].clone()
            _correct(part, x[k, window], known[k, window], coarsened, span)
            fine[refine_rows(rows)] = part[inner]
        corrections[k] = coarsen(fine - before, factor)
    for rows, window, inner in bands(x.shape[1:], flow.abs().max().item()):
        halves = (1 + corrections[None, :, None, window]) / 2  # advection expects values in [0, 1]
        moved = advection(halves, factor, flow[..., window, :][None])[0, 1, 0, inner]
        y[1, refine_rows(rows)].add_(2 * moved - 1).clamp_(0.0, 1.0)


def _correct(fine: Tensor, x: Tensor, known: Tensor, coarsened: str, span: float) -> None:
    """Apply the iterations of back_project to one frame.

    For plain_dbz, only cells whose pixels are all above the floor are corrected; their mean does not depend on the
    floor.
    """
    factor, is_plain = fine.shape[-1] // x.shape[-1], coarsened == "plain_dbz"
    for _ in range(ITERATIONS):
        average = coarsen(fine * span, factor, "dbz" if is_plain else coarsened, floor=0.0) / span
        counts = known & (-F.max_pool2d(-fine[None], factor)[0] > CLEAR_DB / span) if is_plain else known
        wrong = torch.where(counts, x - average, 0.0)
        fine += F.interpolate(wrong[None, None], scale_factor=factor, mode="bilinear", align_corners=False)[0, 0]
        fine.clamp_(0.0, 1.0)
