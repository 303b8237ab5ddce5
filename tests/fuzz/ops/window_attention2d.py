# SPDX-License-Identifier: Apache-2.0
"""Random calls of attention within windows."""

from fastds import ops

from ..small import maps


def window_attention2d(d):
    channels = d.pick((1, 2, 3, 8, 9, 17))
    q, k, v = (d.image(channels) for _ in range(3))
    return {"q": q, "k": k, "v": v, "window": d.pick((1, 2, 3, 4, 7, 30))}


STRATEGIES = {"window_attention2d": window_attention2d}


def examples():
    yield lambda: ops.window_attention2d(maps(), maps(), maps(), window=3)
