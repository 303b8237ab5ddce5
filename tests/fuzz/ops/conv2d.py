# SPDX-License-Identifier: Apache-2.0
"""Random calls of convolutions of any size in groups."""

import fastds
from fastds import ops

from ..small import maps, vector, weight


def conv2d(d):
    groups, inputs, outputs = d.pick((1, 1, 2, 3)), d.int(1, 10), d.int(1, 10)
    weight = d.filters(groups * outputs, inputs, d.pick((1, 3, 5, 7, 11)))
    return {
        "x": d.image(groups * inputs),
        "weight": weight,
        "bias": d.maybe(d.parameter(groups * outputs, dtype=weight.dtype)),
        "groups": groups,
    }


STRATEGIES = {"conv2d": conv2d}


def by_the_op():
    with fastds.use_backend("native"):  # else it may be left to torch
        return ops.conv2d(maps(), weight(6, 2, 5, 5), vector(6), groups=2)


def examples():
    yield by_the_op
