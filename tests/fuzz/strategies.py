# SPDX-License-Identifier: Apache-2.0
"""What each op may be given: `draw(op, kind, choose)` makes a Case of the choices of a random.Random.

hypothesis has a random.Random whose choices it shrinks (tests/test_fuzz.py); the campaign takes Python's, which is
a hundred times faster.
"""

from dataclasses import replace
from random import Random

import torch

from fastds.ops import GridSpec
from fastds.ops.core import native

from .cases import LAYOUTS, POOLS, Case, Grid, Points, Spec

KINDS = ("valid", "special", "invalid")


class Draw:
    """The choices of one call: a dtype, a batch, a size, and what is in the tensors."""

    def __init__(self, choose: Random, kind: str):
        self.choose, self.kind = choose, kind
        self.pick, self.int = choose.choice, choose.randint
        self.autocast = self.pick((None, None, None, "bfloat16", "float16"))
        self.dtype = self.pick(("float32", "float32", "bfloat16", "float16", "float64"))
        self.wide = self.pick(("float32", self.dtype)) if self.dtype != "float64" else self.dtype
        self.batch = self.pick((1, 1, 2, 3, 0 if kind == "valid" else 2))
        self.size = self.int(1, 9), self.int(1, 9)
        self.fills = self.pick((("nan",), tuple(POOLS)))
        self.grad = kind == "valid" and self.pick((True, False))

    def maybe(self, value):
        return self.pick((value, None))

    def tensor(self, *shape, dtype=None, role="image", scale=1.0, fill="normal", layout=None):
        if self.kind == "special" and fill == "normal":
            fill = self.pick((*self.fills, "normal"))
        layout = layout or self.pick(LAYOUTS)
        grad = self.grad and self.pick((True, True, False))
        return Spec(shape, dtype or self.dtype, layout, role, fill, scale, grad)

    def image(self, channels, size=None, **options):
        return self.tensor(self.batch, channels, *(size or self.size), **options)

    def parameter(self, *shape, scale=1.0, dtype=None):
        return self.tensor(*shape, dtype=dtype or self.wide, role="parameter", scale=scale)

    def filters(self, outputs, inputs, size=3):
        """Always finite: what an infinite weight times the zeros around a field gives, algorithms do not agree on."""
        spec = self.parameter(outputs, inputs, size, size, scale=(size * size * inputs) ** -0.5)
        return replace(spec, fill="normal")

    def slope(self):
        return self.pick((0.0, 0.1, 0.2, 1.0, 1.5))


def null_op(d):
    return {"x": d.tensor(*(d.int(0, 4) for _ in range(d.int(0, 5))))}


def gates(**inputs):
    """A strategy of one pass: how many maps are packed in each input; `wide` ones may be float32."""

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
    return {**gates(pre=3, c=1)(d), "state_act": d.pick(("none", "tanh"))}


def output_gate(d):
    return {**gates(pre=1, value=1)(d), "act": d.pick(("sigmoid", "tanh"))}


def update_options(d):
    return {"keep": d.pick(("z", "1-z")), "act": d.pick(("tanh", "leaky_relu")), "negative_slope": d.slope()}


def gru_update(d):
    return {**gates(z=1, pre_n=1, h=1)(d), **update_options(d)}


def traj_gru_gates(d):
    return {**gates(x_part=3, h_part=3, h=1)(d), "negative_slope": d.slope()}


def pixel_shuffle(d):
    r = d.int(1, 8)
    channels = d.int(1, 3) * r * r
    bias = d.maybe(d.parameter(channels))
    act = d.pick((None, "relu", "leaky_relu"))
    return {"x": d.image(channels), "r": r, "bias": bias, "act": act, "negative_slope": d.slope()}


def pixel_unshuffle(d):
    r = d.int(1, 8)
    return {"x": d.image(d.int(1, 5), (r * d.int(1, 4), r * d.int(1, 4))), "r": r}


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
        "x2": d.image(more) if more else None,
        "residual": d.maybe(d.image(outputs, dtype="float32" if out else None)),
        "act": d.pick((None, "relu", "leaky_relu")),
        "negative_slope": d.slope(),
        "padding_mode": d.pick(("zeros", "replicate", "circular_x")),
        "shuffle": r,
        "out_dtype": out,
        "algorithm": algorithm,
    }


def conv1x1(d):
    inputs, more, outputs = d.int(1, 20), d.pick((0, 0, 1, 7)), d.int(1, 20)
    weight = d.filters(outputs, inputs + more, 1)
    return {
        "x": d.image(inputs),
        "weight": weight,
        "bias": d.maybe(d.parameter(outputs, dtype=weight.dtype)),
        "x2": d.image(more) if more else None,
        "residual": d.maybe(d.image(outputs)),
        "act": d.pick((None, "relu", "leaky_relu")),
        "negative_slope": d.slope(),
    }


def cell(packed, state, second):
    """A strategy of a convolution with its pass: gates per channel, the names of the state and of the second map."""

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


def deform_conv2d(d):
    groups, offset_groups = d.pick((1, 1, 2, 3)), d.pick((1, 1, 2))
    per = d.int(1, 4) * offset_groups
    kernel, stride = (d.int(1, 3), d.int(1, 3)), (d.int(1, 2), d.int(1, 3))
    padding, dilation = (d.int(0, 2), d.int(0, 2)), (d.int(0, 2), d.int(0, 2))
    sides = list(zip(kernel, stride, padding, dilation, strict=True))
    size = tuple(max(1, (k - 1) * step + 1 - 2 * p) + d.int(0, 5) for k, _, p, step in sides)
    out = tuple((n + 2 * p - step * (k - 1) - 1) // s + 1 for n, (k, s, p, step) in zip(size, sides, strict=True))
    taps, outputs = kernel[0] * kernel[1], d.int(1, 4) * groups
    dtype = "float64" if d.dtype == "float64" else "float32" if d.autocast else d.wide
    offset = d.image(2 * offset_groups * taps, out, role="own", dtype=dtype, scale=d.pick((0.5, 2.0, 9.0)))
    return {
        "input": d.image(groups * per, size),
        "offset": offset,
        "weight": d.tensor(outputs, per, *kernel, scale=(per * taps) ** -0.5),
        "bias": d.maybe(d.tensor(outputs)),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": d.maybe(d.image(offset_groups * taps, out)),
    }


def window_attention2d(d):
    channels = d.pick((1, 2, 3, 8, 9, 17))
    q, k, v = (d.image(channels) for _ in range(3))
    return {"q": q, "k": k, "v": v, "window": d.pick((1, 2, 3, 4, 7, 30))}


def where(d):
    if d.pick((True, False)):
        make, least = d.pick(((GridSpec.cells, 0), (GridSpec.corners, 1)))
        return Grid(tuple(make(d.size, (d.int(least, 7), d.int(1, 7))).numbers()))
    shape = (d.pick((1, max(1, d.batch))) if d.batch else 1, d.int(0, 9), 2)
    frac = d.tensor(*shape, dtype=d.pick(("float32", "float64")), role="own", fill="unit", layout="contiguous")
    return Points(Spec(shape, fill="base"), replace(frac, grad=False))


def inr_query(d):
    feature = d.pick(("affine", "slope", "fourier", "dot"))
    ensembles = {"dot": ("none",), "fourier": ("none", "late", "early_area")}
    ensemble = d.pick(ensembles.get(feature, ("none", "late", "early_area", "early_attn")))
    heads, dk = (d.int(1, 3), d.int(1, 4)) if ensemble == "early_attn" else (1, 0)
    depth = heads * d.int(1, 6) * (2 if feature == "fourier" else 1)
    outputs = d.int(1, 4)
    total = {"affine": depth, "slope": 3 * depth, "fourier": 2 * depth, "dot": outputs * (depth + 1)}[feature]
    trunk, width = [], depth
    for _ in range(0 if feature == "dot" else d.pick((0, 1, 2, 3))):
        wide = d.int(1, 6)
        trunk.append((d.parameter(wide, width, scale=width**-0.5), d.parameter(wide)))
        width = wide
    width = outputs if feature == "dot" else width
    offsets = feature != "fourier"
    place = where(d)
    queries = place.numbers[0] * place.numbers[4] if isinstance(place, Grid) else place.base.shape[1]
    cell = d.tensor(d.batch, *d.pick(((), (queries,))), 2, role="own", dtype=d.pick(("float32", "float64")))
    cell = d.maybe(replace(cell, grad=False))
    return {
        "maps": d.image(total + 2 * heads * dk),
        "where": place,
        "trunk": tuple(trunk),
        "feature": feature,
        "ensemble": ensemble,
        "rho_w": d.parameter(depth, 2) if feature == "dot" else d.maybe(d.parameter(depth, 2)) if offsets else None,
        "cell_w": d.maybe(d.parameter(depth, 2)) if cell and offsets else None,
        "bias": d.maybe(d.parameter(depth)) if offsets else None,
        "heads": heads,
        "dk": dk,
        "rho_bias": d.maybe(d.parameter(heads, 2)) if ensemble == "early_attn" else None,
        "phase": d.maybe(d.parameter(depth // 2, 2)) if cell and not offsets else None,
        "cell": cell,
        "skip": d.maybe(d.image(width, role="own", dtype="float64" if d.dtype == "float64" else "float32")),
        "act": d.pick(("none", "relu")),
        "edge": (d.pick(("clamp", "wrap")), d.pick(("clamp", "wrap"))),
        "mask": d.maybe(Spec((d.batch, *d.size), fill="mask")),
        "compat": d.pick((None, None, "liif")),
        "out_dtype": d.pick((None, None, torch.float32, torch.bfloat16)),
    }


STRATEGIES = {
    "null_op": null_op,
    "lstm_gates": gates(pre=4, c=1),
    "st_lstm_gates": gates(pre=4, c=1),
    "memory_gates": memory_gates,
    "output_gate": output_gate,
    "gru_reset": gates(pre_z=1, pre_r=1, h=1),
    "gru_update": gru_update,
    "traj_gru_gates": traj_gru_gates,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "conv1x1": conv1x1,
    "conv3x3": conv3x3,
    "conv_lstm_cell": cell(4, "c", "h"),
    "conv_st_lstm_gates": cell(4, "c", "h"),
    "conv_memory_gates": cell(3, "c", "x2"),
    "conv_output_gate": cell(1, "value", "x2"),
    "conv_gru_cell": conv_gru_cell,
    "deform_conv2d": deform_conv2d,
    "window_attention2d": window_attention2d,
    "inr_query": inr_query,
}
CONVOLUTIONS = {name for name in STRATEGIES if name.startswith("conv")}


def isas(op: str) -> list[str]:
    """Instruction sets that this machine has and the op has code for."""
    info = native.module().build_info()
    found = [isa for isa in info["isa_usable"] if isa in info["isa_built"]]
    return [isa for isa in found if isa != "baseline"] or found if op in CONVOLUTIONS else found


def draw(op: str, kind: str, choose: Random) -> Case:
    """One call of an op: "valid", "special" (NaN, infinity, huge and tiny values), or "invalid", to be changed by
    invalid.changed."""
    d = Draw(choose, kind)
    args = STRATEGIES[op](d)
    way = d.pick(("plain",) * 8 + ("vmap", "threads")) if kind == "valid" and d.batch else "plain"
    return Case(op, args, d.int(0, 2**31), d.pick(isas(op)), d.autocast, d.pick((1, 1, 2, 3)), way)
