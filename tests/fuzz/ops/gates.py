# SPDX-License-Identifier: Apache-2.0
"""Random calls of the pointwise ops of recurrent cells."""

from dataclasses import replace

from fastds import ops
from fastds.ops.impl.gates.op import GRU_RESET_PACKED

from ..small import C, maps


def gates(**inputs):
    """Return a strategy for a pointwise op, given the number of maps packed in each input."""

    def strategy(d):
        channels = d.int(1, 9)
        args = {}
        for name, packed in inputs.items():
            wide = name in ("c", "value")
            spec = d.image(packed * channels, **({"role": "wide", "dtype": d.wide} if wide else {}))
            if packed == 1 and spec.fill in ("nonfinite", "huge"):
                spec = replace(
                    spec, fill="nan"
                )  # a closed gate times an infinite state: no formula defines it; huge is infinite in float16
            args[name] = spec
        return args

    return strategy


def memory_gates(d):
    return {**gates(pre=3, c=1)(d), "state_activation": d.pick(("none", "tanh"))}


def output_gate(d):
    return {**gates(pre=1, value=1)(d), "activation": d.pick(("sigmoid", "tanh"))}


def update_options(d):
    return {"keep": d.pick(("z", "1-z")), "activation": d.pick(("tanh", "leaky_relu")), "negative_slope": d.slope()}


def gru_update(d):
    return {**gates(z=1, pre_n=1, h=1)(d), **update_options(d)}


def traj_gru_gates(d):
    return {**gates(x_part=3, h_part=3, h=1)(d), "negative_slope": d.slope()}


STRATEGIES = {
    "lstm_gates": gates(pre=4, c=1),
    "st_lstm_gates": gates(pre=4, c=1),
    "memory_gates": memory_gates,
    "output_gate": output_gate,
    "gru_reset": gates(pre_z=1, pre_r=1, h=1),
    "gru_update": gru_update,
    "traj_gru_gates": traj_gru_gates,
}


def examples():
    yield lambda: ops.lstm_gates(maps(4 * C), maps())
    yield lambda: ops.st_lstm_gates(maps(4 * C), maps())
    yield lambda: ops.memory_gates(maps(3 * C), maps(), state_activation="tanh")
    yield lambda: ops.output_gate(maps(), maps())
    yield lambda: ops.gru_reset(maps(), maps(), maps())
    yield lambda: GRU_RESET_PACKED.forward(maps(2 * C), maps())
    yield lambda: ops.gru_update(maps(), maps(), maps(), activation="leaky_relu")
    yield lambda: ops.traj_gru_gates(maps(3 * C), maps(3 * C), maps())
