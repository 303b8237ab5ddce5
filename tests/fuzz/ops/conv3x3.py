# SPDX-License-Identifier: Apache-2.0
"""Random calls of 3x3 convolutions."""

import torch

from fastds import ops

from ..small import C, maps, vector, weight


def conv3x3(d):
    r, inputs, more = d.pick((1, 1, 1, 2, 3)), d.int(1, 20), d.pick((0, 0, 1, 7))
    outputs = d.int(1, 20 // (r * r)) * r * r
    weight = d.filters(outputs, inputs + more)
    out = d.pick((None, None, torch.float32)) if d.dtype != "float64" and not d.autocast else None
    algorithm = d.pick((None, "auto", "direct", "planes", "product", "winograd")) if d.dtype != "float64" else None
    return {
        "x": d.image(inputs),
        "weight": weight,
        "bias": d.maybe(d.parameter(outputs, dtype=weight.dtype)),
        "second_input": d.image(more) if more else None,
        "residual": d.maybe(d.image(outputs, dtype="float32" if out else None)),
        "activation": d.pick((None, "relu", "leaky_relu")),
        "negative_slope": d.slope(),
        "padding_mode": d.pick(("zeros", "replicate", "circular_x")),
        "upscale_factor": r,
        "out_dtype": out,
        "algorithm": algorithm,
    }


STRATEGIES = {"conv3x3": conv3x3}


def examples():
    both = {"second_input": maps(3), "activation": "leaky_relu", "upscale_factor": 2, "padding_mode": "circular_x"}
    for algorithm in ("winograd", "direct"):
        options = {**both, "residual": maps(8), "algorithm": algorithm}
        yield lambda options=options: ops.conv3x3(maps(), weight(8, C + 3), vector(8), **options)
