# SPDX-License-Identifier: Apache-2.0
"""Test protocols of the INR study: how the coarse inputs are made and how fine fields are computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fastds.tasks.fields.back_projection import back_project

PROTOCOLS = {
    "clean": "from area means (protocol A)",
    "agreeing": "from area means, corrected to agree with them",
    "mirrored": "from area means, the mean of four mirrored outputs, corrected to agree",
    "degraded": "from degraded fields (protocol B)",
}
_MIRRORS = ((), (2,), (3,), (2, 3))  # axes that are flipped
Predict = Callable[[Tensor, tuple[int, int]], Tensor]


def make_protocols(
    predict: Predict, degrade: Callable, vectors: Sequence[int]
) -> dict[str, tuple[Predict, Callable | None]]:
    """Make the test protocols of a method.

    Args:
        predict: predict(x, size) downscales fields with the method.
        degrade: degradation of the inputs, see compute_crop_errors.
        vectors: channels of (u, v); -1 or empty: absent.
    Returns:
        Protocol -> (function that downscales fields (B, C, h, w), function that makes the inputs; None: area means).
    """

    def back_projected(x: Tensor, size: tuple[int, int]) -> Tensor:
        return back_project(predict(x, size), x)

    def mirrored(x: Tensor, size: tuple[int, int]) -> Tensor:
        outputs = [_mirror(predict(_mirror(x, axes, vectors), size), axes, vectors) for axes in _MIRRORS]
        return back_project(sum(outputs) / len(outputs), x)

    return {
        "clean": (predict, None), "agreeing": (back_projected, None), "mirrored": (mirrored, None),
        "degraded": (predict, degrade),
    }  # fmt: skip


def _mirror(x: Tensor, axes: tuple[int, ...], vectors: Sequence[int]) -> Tensor:
    """Flip the fields along axes; vector components along these axes change sign."""
    x = x.flip(axes)
    for axis, component in zip((3, 2), vectors, strict=False):
        if axis in axes and component >= 0:
            x[:, component] *= -1
    return x
