# SPDX-License-Identifier: Apache-2.0
"""Random calls of pixel_shuffle and pixel_unshuffle."""

from fastds import ops

from ..small import C, maps, vector


def pixel_shuffle(d):
    r = d.int(1, 8)
    channels = d.int(1, 3) * r * r
    bias = d.maybe(d.parameter(channels))
    act = d.pick((None, "relu", "leaky_relu"))
    return {"x": d.image(channels), "upscale_factor": r, "bias": bias, "activation": act, "negative_slope": d.slope()}


def pixel_unshuffle(d):
    r = d.int(1, 8)
    return {"x": d.image(d.int(1, 5), (r * d.int(1, 4), r * d.int(1, 4))), "downscale_factor": r}


STRATEGIES = {"pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle}


def examples():
    yield lambda: ops.pixel_shuffle(maps(), 2, vector(C), "leaky_relu")
    yield lambda: ops.pixel_unshuffle(maps(size=(4, 6)), 2)
