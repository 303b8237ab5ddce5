# SPDX-License-Identifier: Apache-2.0
"""Ours against the best peer on shapes drawn at random: `python -m bench.sweep conv3x3 --shapes 200 --seed 1 [--save]`.

Listed benchmarks show what was tuned; a sweep shows what a user meets. Every shape is drawn from wide distributions
(channels 1 to 1024, maps 5 to 500 pixels, batch 1 to 16, log-uniform, at most 2^23 numbers a map), in both memory
formats, forward and training step. Ours and the peers run in turn in one process on the same tensors; each peer may
use the layout it likes best; freed memory is kept (`fastds.keep_freed_memory()`). All shapes are measured in rounds,
minutes apart, because a neighbour on the host can slow one of them for seconds. Prints the distribution of (time of the
best peer) / (our time) and every loser, and with it how long two threads take to exchange memory: see exchange.py.
--save puts the rows into bench/results/sweeps.csv. --avx2 keeps ours and torch to
AVX2 on a machine that has more; onnxruntime, the peer of deform_conv2d, cannot be told.
"""

import argparse
import datetime
import math
import os
import pathlib
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import in_turn
from bench.avx2 import keep_to_avx2
from bench.conftest import cpu_name
from bench.exchange import SLOW_NS, exchange_ns
from bench.report import SLOW, SPREAD, spread, table
from bench.sweep_results import save_sweep
from fastds import keep_freed_memory, ops

MOST_NUMBERS = 1 << 23  # in one map
MOST_FLOPS = 3e10
CHANNELS_LAST = torch.channels_last


@dataclass
class Case:
    """One shape: ours and peers take the same tensors; peers with "channels_last" in their name get that layout."""

    text: str
    tensors: tuple[Tensor, ...]
    ours: Callable
    peers: dict[str, Callable]


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def channels(rng: random.Random) -> int:
    """Half of them round numbers as networks have, half anything from 1 to 1024."""
    return rng.choice((8, 16, 24, 32, 48, 64, 96, 128, 256, 512)) if rng.random() < 0.5 else log_uniform(rng, 1, 1024)


def maps(rng: random.Random) -> tuple[int, int, int]:
    """Batch, height, width."""
    height = log_uniform(rng, 5, 500)
    width = height if rng.random() < 0.5 else log_uniform(rng, 5, 500)
    return log_uniform(rng, 1, 16), height, width


class TooLarge(Exception):
    """A drawn shape takes too much memory or time."""


def check(numbers: int, flops: float = 0.0) -> None:
    if numbers > MOST_NUMBERS or flops > MOST_FLOPS:
        raise TooLarge


def normal(*shape: int) -> Tensor:
    check(math.prod(shape))
    return torch.randn(shape)


def draw_conv3x3(rng: random.Random) -> Case:
    (batch, height, width), inputs, outputs = maps(rng), channels(rng), channels(rng)
    act = rng.choice((None, "relu", "leaky_relu"))
    flops = 18.0 * batch * height * width * inputs * outputs
    check(batch * outputs * height * width, flops)
    tensors = normal(batch, inputs, height, width), normal(outputs, inputs, 3, 3) / (3 * inputs**0.5), normal(outputs)

    def peer(x, weight, bias):
        y = F.conv2d(x, weight, bias, padding=1)
        return y if act is None else F.relu(y) if act == "relu" else F.leaky_relu(y, 0.1)

    text = f"({batch},{inputs},{height},{width}) -> {outputs}, {act}"
    return Case(text, tensors, lambda *t: ops.conv3x3(*t, act=act), {"torch": peer, "torch channels_last": peer})


def draw_conv1x1(rng: random.Random) -> Case:
    """Half of them of two sources, which torch convolves one after the other or side by side."""
    (batch, height, width), inputs, outputs = maps(rng), channels(rng), channels(rng)
    more = rng.choice((0, 0, inputs, channels(rng)))
    points = batch * height * width
    check(points * max(outputs, inputs + more), 2.0 * points * (inputs + more) * outputs)
    weight, bias = normal(outputs, inputs + more, 1, 1) / (inputs + more) ** 0.5, normal(outputs)
    x, text = normal(batch, inputs, height, width), f"({batch},{inputs}+{more},{height},{width}) -> {outputs}"
    if not more:
        return Case(text, (x, weight, bias), ops.conv1x1, {"torch": F.conv2d, "torch channels_last": F.conv2d})

    def ours(x, x2, weight, bias):
        return ops.conv1x1(x, weight, bias, x2=x2)

    def summed(x, x2, weight, bias):
        return F.conv2d(x, weight[:, :inputs], bias) + F.conv2d(x2, weight[:, inputs:])

    def joined(x, x2, weight, bias):
        return F.conv2d(torch.cat([x, x2], 1), weight, bias)

    peers = {"torch": joined, "torch channels_last": joined, "torch sum": summed, "torch sum channels_last": summed}
    return Case(text, (x, normal(batch, more, height, width), weight, bias), ours, peers)


def draw_conv2d_shape(rng: random.Random, most_flops: float = MOST_FLOPS) -> tuple[int, ...]:
    """Batch, inputs and outputs of a group, height, width, size of the kernel, groups."""
    while True:
        (batch, height, width), groups = maps(rng), rng.choice((1, 1, 2, 4, 8))
        inputs, outputs, size = log_uniform(rng, 1, 256), log_uniform(rng, 1, 256), rng.choice((3, 5, 5, 7, 7, 9, 11))
        points = groups * batch * height * width
        flops = 2.0 * points * inputs * outputs * size**2
        if points * max(inputs, outputs) <= MOST_NUMBERS and flops <= most_flops:
            return batch, inputs, outputs, height, width, size, groups


def draw_conv2d(rng: random.Random) -> Case:
    batch, inputs, outputs, height, width, size, groups = draw_conv2d_shape(rng)
    weight = normal(groups * outputs, inputs, size, size) / (size * inputs**0.5)
    tensors = normal(batch, groups * inputs, height, width), weight, normal(groups * outputs)

    def peer(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=size // 2, groups=groups)

    text = f"({batch},{groups}*{inputs},{height},{width}) -> {groups}*{outputs}, {size} x {size}"
    peers = {"torch": peer, "torch channels_last": peer}
    return Case(text, tensors, lambda *t: ops.conv2d(*t, groups=groups), peers)


def draw_pixel_shuffle(rng: random.Random) -> Case:
    (batch, height, width), r = maps(rng), rng.randint(2, 8)
    count, act = log_uniform(rng, 1, 256), rng.choice(("none", "relu", "leaky_relu"))
    tensors = normal(batch, count * r * r, height, width), normal(count * r * r)

    def peer(x, bias):
        y = F.pixel_shuffle(x + bias[:, None, None], r)
        return y if act == "none" else F.relu_(y) if act == "relu" else F.leaky_relu_(y, 0.1)

    def ours(x, bias):
        return ops.pixel_shuffle(x, r, bias, None if act == "none" else act)

    text = f"({batch},{count}*{r * r},{height},{width}) x{r}, {act}"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_deform_conv2d(rng: random.Random) -> Case:
    from bench import peers

    batch, height, width = maps(rng)
    groups, kernel = rng.choice((1, 2, 4, 8)), rng.choice((1, 3, 3, 3, 5))
    inputs, outputs = groups * log_uniform(rng, 1, 32), channels(rng)
    case = peers.Case("", "", batch, inputs, outputs, height, width, groups, (kernel, kernel), (kernel // 2,) * 2, 1)
    points = batch * height * width
    check(points * max(inputs, outputs, 2 * groups * case.taps), case.flops("forward"))
    x, offset, mask, weight, bias = case.args()

    def ours(x, offset, mask, weight, bias):
        return ops.deform_conv2d(x, offset, weight, bias, 1, case.padding, 1, mask)

    def composed(x, offset, mask, weight, bias):
        return peers.grid_sample_composition(x, offset, mask, weight, bias, case.padding, 1)

    text = f"({batch},{inputs},{height},{width}) -> {outputs}, {groups} groups, {kernel} x {kernel}"
    found = {"torch": composed, "onnxruntime": peers.onnxruntime(case, "forward", torch.float32, spinning=False)}
    return Case(text, (x, offset, mask, weight, bias), ours, found)


def draw_conv_lstm_cell(rng: random.Random) -> Case:
    batch, height, width = maps(rng)
    inputs, hidden = log_uniform(rng, 1, 128), log_uniform(rng, 4, 128)
    field = (batch, hidden, height, width)
    check(4 * hidden * batch * height * width, 72.0 * batch * height * width * hidden * (inputs + hidden))
    weight = normal(4 * hidden, inputs + hidden, 3, 3) / (3 * (inputs + hidden) ** 0.5)
    tensors = normal(batch, inputs, height, width), normal(*field), normal(*field), weight, normal(4 * hidden)

    def peer(x, h, c, weight, bias):
        i, f, g, o = F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)

    def ours(*t):
        return ops.conv_lstm_cell(*t)[0]

    text = f"({batch},{inputs}+{hidden},{height},{width})"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_lstm_gates(rng: random.Random) -> Case:
    (batch, height, width), hidden = maps(rng), log_uniform(rng, 4, 256)
    tensors = normal(batch, 4 * hidden, height, width), normal(batch, hidden, height, width)

    def peer(pre, c):
        i, f, g, o = pre.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)

    def ours(*t):
        return ops.lstm_gates(*t)[0]

    return Case(f"({batch},4*{hidden},{height},{width})", tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_conv_gru_cell(rng: random.Random) -> Case:
    batch, height, width = maps(rng)
    inputs, hidden = log_uniform(rng, 1, 128), log_uniform(rng, 4, 128)
    both = inputs + hidden
    check(2 * hidden * batch * height * width, 54.0 * batch * height * width * hidden * both)
    weights = [normal(n * hidden, both, 3, 3) / (3 * both**0.5) for n in (2, 1)]
    tensors = normal(batch, inputs, height, width), normal(batch, hidden, height, width), *weights

    def peer(x, h, gates, candidate):
        z, r = F.conv2d(torch.cat([x, h], 1), gates, padding=1).sigmoid().chunk(2, 1)
        n = F.conv2d(torch.cat([x, r * h], 1), candidate, padding=1).tanh()
        return z * h + (1 - z) * n

    def ours(x, h, gates, candidate):
        return ops.conv_gru_cell(x, h, gates, None, candidate, None)

    text = f"({batch},{inputs}+{hidden},{height},{width})"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_window_attention2d(rng: random.Random) -> Case:
    (batch, height, width), window = maps(rng), 2 * log_uniform(rng, 1, 15)
    width_of_head = log_uniform(rng, 1, 64)
    check(batch * width_of_head * window**2 * height * width)  # what the peer unfolds
    tensors = tuple(0.7 * normal(batch, width_of_head, height, width) for _ in range(3))

    def peer(q, k, v):
        half = window // 2
        k, v = (F.unfold(F.pad(t, (half, window - half - 1) * 2), window).unflatten(1, (-1, window**2)) for t in (k, v))
        weights = torch.einsum("bcp,bcnp->bnp", q.flatten(2), k).softmax(1)
        return torch.einsum("bnp,bcnp->bcp", weights, v).view(q.shape)

    text = f"({batch},{width_of_head},{height},{width}), window {window}"
    peers = {"torch": peer, "torch channels_last": peer}
    return Case(text, tensors, lambda *t: ops.window_attention2d(*t, window=window), peers)


def draw_inr_query(rng: random.Random) -> Case:
    """LIIF: the published steps against a convolution and one query; random widths, depths, sizes and scales."""
    from bench.bench_inr_query import coordinates_of, published_liif

    inputs, hidden, outputs = log_uniform(rng, 4, 96), 8 * log_uniform(rng, 1, 32), rng.randint(1, 6)
    source, scale = (log_uniform(rng, 5, 100), log_uniform(rng, 5, 100)), rng.uniform(1.2, 8)
    target = tuple(round(scale * n) for n in source)
    widths = (9 * inputs + 4, *[hidden] * rng.randint(1, 4), outputs)
    products = sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
    queries = target[0] * target[1]
    check(min(queries, 30_000) * max(widths), 8.0 * queries * products)
    layers = [(normal(b, a) / a**0.5, normal(b)) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    coord, cell, grid = (
        coordinates_of(target),
        torch.tensor([[2 / scale, 2 / scale]]),
        ops.GridSpec.cells(source, target),
    )

    def pairs(parameters):
        return list(zip(parameters[::2], parameters[1::2], strict=True))

    def ours(x, w, b, *others):
        kernel = w[:, :-4].unflatten(1, (inputs, 3, 3))
        size = {"rho_w": w[:, -4:-2].float(), "cell_w": w[:, -2:].float(), "cell": cell, "ensemble": "late"}
        return ops.inr_query(ops.conv3x3(x, kernel, b), grid, pairs([t.float() for t in others]), **size)

    def peer(x, *parameters):
        return published_liif(x, coord, cell, pairs(parameters))

    tensors = (normal(1, inputs, *source), *(t for layer in layers for t in layer))
    text = f"(1,{inputs},{source[0]},{source[1]}) -> {outputs} at {target[0]} x {target[1]}, {widths[1:-1]}"
    return Case(text, tensors, ours, {"torch": peer})


OPS: dict[str, Callable[[random.Random], Case]] = {
    "conv1x1": draw_conv1x1,
    "conv2d": draw_conv2d,
    "conv3x3": draw_conv3x3,
    "conv_gru_cell": draw_conv_gru_cell,
    "conv_lstm_cell": draw_conv_lstm_cell,
    "deform_conv2d": draw_deform_conv2d,
    "inr_query": draw_inr_query,
    "lstm_gates": draw_lstm_gates,
    "pixel_shuffle": draw_pixel_shuffle,
    "window_attention2d": draw_window_attention2d,
}


def drawn(op: str, shapes: int, seed: int) -> Iterator[tuple[Case, str, str]]:
    """Cases with a memory format and a mode; what is too large is drawn again."""
    rng = random.Random(f"{op} {seed}")
    torch.manual_seed(seed)
    found = 0
    while found < shapes:
        try:
            case = OPS[op](rng)
        except TooLarge:
            continue
        found += 1
        yield case, rng.choice(("contiguous", "channels_last")), rng.choice(("forward", "step"))


def laid_out(tensors: tuple[Tensor, ...], layout: str, dtype: torch.dtype) -> list[Tensor]:
    fmt = CHANNELS_LAST if layout == "channels_last" else torch.contiguous_format
    return [t.to(dtype).contiguous(memory_format=fmt) if t.dim() == 4 else t.to(dtype) for t in tensors]


def program(function: Callable, tensors: list[Tensor], mode: str) -> Callable[[], object]:
    """The timed callable: the value without a graph, or value and gradients of all tensors."""
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    cotangent = torch.ones_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def measure(case: Case, layout: str, mode: str, dtype: torch.dtype) -> dict:
    """The row of one shape: seconds of ours and of every peer."""
    runs = {"fastds": program(case.ours, laid_out(case.tensors, layout, dtype), mode)}
    for name, peer in case.peers.items():
        if name == "onnxruntime":
            if mode == "forward" and dtype == torch.float32:
                runs[name] = peer
            continue
        own = "channels_last" if "channels_last" in name else layout
        runs[name] = program(peer, laid_out(case.tensors, own, dtype), mode)
    before = exchange_ns()
    seconds = in_turn.quiet(runs)
    exchange = max(before, exchange_ns())
    peers = {name: 1e3 * second for name, second in seconds.items() if name != "fastds"}
    best = min(peers, key=peers.get)
    return {
        "shape": case.text, "layout": layout, "mode": mode, "ms": 1e3 * seconds["fastds"], "best": best,
        "best_ms": peers[best], "ratio": 1e-3 * peers[best] / seconds["fastds"], "peers": peers,
        "exchange_ns": round(exchange),
    }  # fmt: skip


def measured(op: str, shapes: int, seed: int, dtype: torch.dtype) -> list[dict]:
    """The rows of all shapes."""
    rows = []
    for number, (case, layout, mode) in enumerate(drawn(op, shapes, seed), 1):
        rows.append(measure(case, layout, mode, dtype))
        print(f"{number}/{shapes} {rows[-1]['shape']} {layout} {mode}: {rows[-1]['ratio']:.2f}", flush=True)
    return rows


def summary(rows: list[dict]) -> str:
    lines = []
    for mode, layout in sorted({(r["mode"], r["layout"]) for r in rows}):
        ratios = [r["ratio"] for r in rows if (r["mode"], r["layout"]) == (mode, layout)]
        lines.append((f"{mode}, {layout}", *spread(ratios)))
    return table(("mode, layout", *SPREAD), lines)


def commit() -> str:
    """Return the commit of the checkout, short, with + where it has changes; "" outside of one."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", choices=sorted(OPS))
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=0.05, help="for every program of a shape in a round")
    parser.add_argument("--rounds", type=int, default=3, help="over all shapes; the one of the middle ratio counts")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="on a machine that has more")
    options = parser.parse_args()
    if options.avx2:
        keep_to_avx2()
    in_turn.SECONDS = options.seconds
    from fastds.info import info

    keep_freed_memory()
    load, dtype = os.getloadavg()[0], getattr(torch, options.dtype)
    rounds = [measured(options.op, options.shapes, options.seed, dtype) for _ in range(options.rounds)]
    rows = [sorted(same, key=lambda r: r["ratio"])[len(same) // 2] for same in zip(*rounds, strict=True)]
    head = {"op": options.op, "dtype": options.dtype, "seed": options.seed, "device": cpu_name()}
    isa = info()["instruction sets"].split()[-2]
    head |= {"threads": torch.get_num_threads(), "isa": isa, "torch": torch.__version__, "load": round(load, 1)}
    print(f"\n{head}\n\n{summary(rows)}\n\nslower than the best peer:")
    line = "{ratio:.2f} {shape} {layout} {mode}: {ms:.3g} against {best_ms:.3g} ms, {best}; exchange {exchange_ns} ns"
    for row in sorted((r for r in rows if r["ratio"] < SLOW), key=lambda r: r["ratio"]):
        print(line.format(**row))
    far = sum(r["exchange_ns"] > SLOW_NS for r in rows)
    print(f"two threads took more than {SLOW_NS:.0f} ns to exchange memory in {far} of {len(rows)} shapes")
    if options.save:
        head |= {"commit": commit(), "date": datetime.date.today().isoformat()}
        print(f"\nsaved {save_sweep(head, rows)}")


if __name__ == "__main__":
    main()
