# SPDX-License-Identifier: Apache-2.0
"""Random calls of convolutions with fused gates of recurrent cells."""

from fastds import ops

from ..small import C, maps, vector, weight
from .gates import update_options


def cell(packed, state, second):
    """Return a strategy for a convolution with fused gates.

    Args:
        packed: number of gates per channel.
        state: names of the state maps.
        second: name of the second input of the convolution.
    """

    def strategy(d):
        channels, inputs = d.int(1, 8), d.int(1, 8)
        more = channels if second == "h" and packed == 4 else d.int(1, 8)
        weight = d.filters(packed * channels, inputs + more)
        other = d.image(more) if packed == 1 else d.maybe(d.image(more))
        return {
            "x": d.image(inputs),
            second: other,
            state: d.image(channels, role="wide", dtype=d.wide),
            "weight": weight,
            "bias": d.maybe(d.parameter(packed * channels, dtype=weight.dtype)),
            **({"residual": d.maybe(d.image(channels))} if packed == 1 else {}),
        }

    return strategy


def conv_gru_cell(d):
    channels, inputs = d.int(1, 8), d.int(1, 8)
    shares = d.pick((False, False, True))
    total = channels + (0 if shares else inputs)
    return {
        "x": None if shares else d.image(inputs),
        "h": d.image(channels),
        "gates_weight": d.filters(2 * channels, total),
        "gates_bias": d.maybe(d.parameter(2 * channels)),
        "candidate_weight": d.filters(channels, total),
        "candidate_bias": d.maybe(d.parameter(channels)),
        "shares": (d.image(2 * channels), d.image(channels)) if shares else None,
        **update_options(d),
    }


STRATEGIES = {
    "conv_lstm_cell": cell(4, "c", "h"),
    "conv_st_lstm_gates": cell(4, "c", "h"),
    "conv_memory_gates": cell(3, "c", "second_input"),
    "conv_output_gate": cell(1, "value", "second_input"),
    "conv_gru_cell": conv_gru_cell,
}


def examples():
    three = (maps(), maps(), maps())
    yield lambda: ops.conv_lstm_cell(*three, weight(4 * C, 2 * C), vector(4 * C))
    yield lambda: ops.conv_st_lstm_gates(*three, weight(4 * C, 2 * C), vector(4 * C))
    yield lambda: ops.conv_memory_gates(*three, weight(3 * C, 2 * C), vector(3 * C))
    yield lambda: ops.conv_output_gate(*three, weight(C, 2 * C), vector(C), maps())
    gru = (weight(2 * C, 2 * C), vector(2 * C), weight(C, 2 * C), vector(C))
    yield lambda: ops.conv_gru_cell(*three[:2], *gru)
