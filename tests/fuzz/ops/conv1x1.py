# SPDX-License-Identifier: Apache-2.0
"""Random calls of 1x1 convolutions."""

from fastds import ops

from ..small import C, maps, vector, weight


def conv1x1(d):
    inputs, more, outputs = d.int(1, 20), d.pick((0, 0, 1, 7)), d.int(1, 20)
    weight = d.filters(outputs, inputs + more, 1)
    return {
        "x": d.image(inputs),
        "weight": weight,
        "bias": d.maybe(d.parameter(outputs, dtype=weight.dtype)),
        "second_input": d.image(more) if more else None,
        "residual": d.maybe(d.image(outputs)),
        "activation": d.pick((None, "relu", "leaky_relu")),
        "negative_slope": d.slope(),
    }


STRATEGIES = {"conv1x1": conv1x1}


def examples():
    one = {"second_input": maps(3), "residual": maps(8), "activation": "leaky_relu"}
    yield lambda: ops.conv1x1(maps(), weight(8, C + 3, 1, 1), vector(8), **one)
