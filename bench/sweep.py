# SPDX-License-Identifier: Apache-2.0
"""Comparison with peers on randomly drawn shapes: `python -m bench.sweep conv3x3 --shapes 200 --seed 1 [--save]`.

fastds was tuned for the listed shapes of the other benchmarks; a sweep covers other shapes. Shapes are drawn
log-uniformly (channels up to 1024, height and width 5 to 500 pixels, batch 1 to 16, at most 2^23 numbers per tensor),
in both memory formats, forward and training step. fastds and the peers run interleaved in one process on the same
values; peers run in the memory format of fastds and in channels_last. Freed memory stays in the process. All shapes are
measured in several rounds with minutes between them, because other work on the host can slow down a shape for seconds.

The program prints the distribution of the ratios (time of the fastest peer) / (time of fastds) and all shapes below
0.95, with the latency between two processors (bench/core_latency.py).

--small draws small calls, whose time is mostly overhead: at most 2^15 numbers per tensor and 1.5e7 FLOPs. The program
then also prints how many of the calls that take less than 0.2 ms are slower than the fastest peer.

--save writes the rows to bench/results/sweeps.csv. --avx2 limits fastds and torch to AVX2. The option does not affect
onnxruntime, a peer of deform_conv2d.
"""

import argparse
import itertools
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import deform_conv2d_peers, interleaved_timing
from bench.avx2 import limit_to_avx2
from bench.core_latency import SLOW_NS, measure_core_latency_ns
from bench.machine import describe_cpu_run
from bench.report import RATIO_COLUMNS, SLOW, format_table, summarize_ratios
from bench.result_files import save_sweep
from bench.torch_cells import compute_gru_cell, compute_lstm, compute_lstm_cell
from fastds import ops
from fastds.memory import set_malloc_retention

MAX_FLOPS = 3e10
SHORT_MS = 0.2  # time of a short call
CHANNELS_LAST = torch.channels_last


@dataclass
class Limits:
    """Limits of the drawn shapes.

    Attributes:
        numbers: numbers in one tensor.
        flops: FLOPs of a call.
    """

    numbers: int = 1 << 23
    flops: float = MAX_FLOPS


LIMITS = Limits()
SMALL = Limits(1 << 15, 1.5e7)


@dataclass
class Case:
    """One randomly drawn call.

    Attributes:
        text: the shape as text.
        tensors: contiguous float32 arguments of `ours` and of the peers.
        ours: the op of fastds.
        peers: functions by name. Peers with "channels_last" in their name get tensors in channels_last; the peer
            onnxruntime takes no arguments.
    """

    text: str
    tensors: tuple[Tensor, ...]
    ours: Callable
    peers: dict[str, Callable]


def draw_log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def draw_channels(rng: random.Random) -> int:
    """Draw a number of channels: a usual one of networks or, equally often, a log-uniform one from 1 to 1024."""
    return (
        rng.choice((8, 16, 24, 32, 48, 64, 96, 128, 256, 512)) if rng.random() < 0.5 else draw_log_uniform(rng, 1, 1024)
    )


def draw_size(rng: random.Random) -> tuple[int, int, int]:
    """Draw batch, height and width; half of the images are square."""
    height = draw_log_uniform(rng, 5, 500)
    width = height if rng.random() < 0.5 else draw_log_uniform(rng, 5, 500)
    return draw_log_uniform(rng, 1, 16), height, width


class TooLargeError(Exception):
    """A drawn shape needs too much memory or time."""


def check_size(numbers: int, flops: float = 0.0) -> None:
    """Raise TooLargeError if a tensor has too many numbers or a call too many FLOPs."""
    if numbers > LIMITS.numbers or flops > LIMITS.flops:
        raise TooLargeError


def draw_normal(*shape: int) -> Tensor:
    """Draw standard normal values, or raise TooLargeError."""
    check_size(math.prod(shape))
    return torch.randn(shape)


def draw_conv3x3(rng: random.Random) -> Case:
    (batch, height, width), inputs, outputs = draw_size(rng), draw_channels(rng), draw_channels(rng)
    act = rng.choice((None, "relu", "leaky_relu"))
    flops = 18.0 * batch * height * width * inputs * outputs
    check_size(batch * outputs * height * width, flops)
    tensors = (
        draw_normal(batch, inputs, height, width),
        draw_normal(outputs, inputs, 3, 3) / (3 * inputs**0.5),
        draw_normal(outputs),
    )

    def peer(x, weight, bias):
        y = F.conv2d(x, weight, bias, padding=1)
        return y if act is None else F.relu(y) if act == "relu" else F.leaky_relu(y, 0.1)

    text = f"({batch},{inputs},{height},{width}) -> {outputs}, {act}"
    return Case(text, tensors, lambda *t: ops.conv3x3(*t, activation=act), {"torch": peer, "torch channels_last": peer})


def draw_conv1x1(rng: random.Random) -> Case:
    """Draw a 1x1 convolution, in half of the cases with two inputs.

    For two inputs, the peers in torch concatenate the inputs or add two convolutions.
    """
    (batch, height, width), inputs, outputs = draw_size(rng), draw_channels(rng), draw_channels(rng)
    more_inputs = rng.choice((0, 0, inputs, draw_channels(rng)))
    points, total = batch * height * width, inputs + more_inputs
    check_size(points * max(outputs, total), 2.0 * points * total * outputs)
    weight, bias = (
        draw_normal(outputs, total, 1, 1) / total**0.5,
        draw_normal(outputs),
    )
    x, text = (
        draw_normal(batch, inputs, height, width),
        f"({batch},{inputs}+{more_inputs},{height},{width}) -> {outputs}",
    )
    if not more_inputs:
        return Case(text, (x, weight, bias), ops.conv1x1, {"torch": F.conv2d, "torch channels_last": F.conv2d})

    def ours(x, x2, weight, bias):
        return ops.conv1x1(x, weight, bias, second_input=x2)

    def summed(x, x2, weight, bias):
        return F.conv2d(x, weight[:, :inputs], bias) + F.conv2d(x2, weight[:, inputs:])

    def joined(x, x2, weight, bias):
        return F.conv2d(torch.cat([x, x2], 1), weight, bias)

    peers = {"torch": joined, "torch channels_last": joined, "torch sum": summed, "torch sum channels_last": summed}
    return Case(text, (x, draw_normal(batch, more_inputs, height, width), weight, bias), ours, peers)


def draw_conv2d_shape(rng: random.Random, max_flops: float | None = None) -> tuple[int, ...]:
    """Draw a convolution of square kernels.

    Args:
        rng: source of random numbers.
        max_flops: FLOPs that a shape may have, None for LIMITS.flops; larger shapes are drawn again.

    Returns:
        Batch, inputs per group, outputs per group, height, width, kernel size, groups.
    """
    max_flops = LIMITS.flops if max_flops is None else max_flops
    while True:
        (batch, height, width), groups = draw_size(rng), rng.choice((1, 1, 2, 4, 8))
        inputs, outputs, size = (
            draw_log_uniform(rng, 1, 256),
            draw_log_uniform(rng, 1, 256),
            rng.choice((3, 5, 5, 7, 7, 9, 11)),
        )
        points = groups * batch * height * width
        flops = 2.0 * points * inputs * outputs * size**2
        if points * max(inputs, outputs) <= LIMITS.numbers and flops <= max_flops:
            return batch, inputs, outputs, height, width, size, groups


def draw_conv2d(rng: random.Random) -> Case:
    batch, inputs, outputs, height, width, size, groups = draw_conv2d_shape(rng)
    weight = draw_normal(groups * outputs, inputs, size, size) / (size * inputs**0.5)
    tensors = draw_normal(batch, groups * inputs, height, width), weight, draw_normal(groups * outputs)

    def peer(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=size // 2, groups=groups)

    text = f"({batch},{groups}*{inputs},{height},{width}) -> {groups}*{outputs}, {size} x {size}"
    peers = {"torch": peer, "torch channels_last": peer}
    return Case(text, tensors, lambda *t: ops.conv2d(*t, groups=groups), peers)


def draw_pixel_shuffle(rng: random.Random) -> Case:
    (batch, height, width), r = draw_size(rng), rng.randint(2, 8)
    count, act = draw_log_uniform(rng, 1, 256), rng.choice(("none", "relu", "leaky_relu"))
    tensors = draw_normal(batch, count * r * r, height, width), draw_normal(count * r * r)

    def peer(x, bias):
        y = F.pixel_shuffle(x + bias[:, None, None], r)
        return y if act == "none" else F.relu_(y) if act == "relu" else F.leaky_relu_(y, 0.1)

    def ours(x, bias):
        return ops.pixel_shuffle(x, r, bias, None if act == "none" else act)

    text = f"({batch},{count}*{r * r},{height},{width}) x{r}, {act}"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_deform_conv2d(rng: random.Random) -> Case:
    batch, height, width = draw_size(rng)
    groups, kernel = rng.choice((1, 2, 4, 8)), rng.choice((1, 3, 3, 3, 5))
    inputs, outputs = groups * draw_log_uniform(rng, 1, 32), draw_channels(rng)
    case = deform_conv2d_peers.Case(
        "", "", batch, inputs, outputs, height, width, groups, (kernel, kernel), (kernel // 2,) * 2, 1
    )
    points = batch * height * width
    check_size(points * max(inputs, outputs, 2 * groups * case.taps), case.count_flops("forward"))
    x, offset, mask, weight, bias = case.make_args()

    def ours(x, offset, mask, weight, bias):
        return ops.deform_conv2d(x, offset, weight, bias, 1, case.padding, 1, mask)

    def composed(x, offset, mask, weight, bias):
        return deform_conv2d_peers.compute_by_grid_sample(x, offset, mask, weight, bias, case.padding, 1)

    text = f"({batch},{inputs},{height},{width}) -> {outputs}, {groups} groups, {kernel} x {kernel}"
    onnxruntime = deform_conv2d_peers.build_onnxruntime(case, "forward", torch.float32, spinning=False)
    return Case(text, (x, offset, mask, weight, bias), ours, {"torch": composed, "onnxruntime": onnxruntime})


def draw_conv_lstm_cell(rng: random.Random) -> Case:
    batch, height, width = draw_size(rng)
    inputs, hidden = draw_log_uniform(rng, 1, 128), draw_log_uniform(rng, 4, 128)
    field = (batch, hidden, height, width)
    check_size(4 * hidden * batch * height * width, 72.0 * batch * height * width * hidden * (inputs + hidden))
    weight = draw_normal(4 * hidden, inputs + hidden, 3, 3) / (3 * (inputs + hidden) ** 0.5)
    tensors = (
        draw_normal(batch, inputs, height, width),
        draw_normal(*field),
        draw_normal(*field),
        weight,
        draw_normal(4 * hidden),
    )

    def peer(*t):
        return compute_lstm_cell(*t)[0]

    def ours(*t):
        return ops.conv_lstm_cell(*t)[0]

    text = f"({batch},{inputs}+{hidden},{height},{width})"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_lstm_gates(rng: random.Random) -> Case:
    (batch, height, width), hidden = draw_size(rng), draw_log_uniform(rng, 4, 256)
    tensors = draw_normal(batch, 4 * hidden, height, width), draw_normal(batch, hidden, height, width)

    def peer(*t):
        return compute_lstm(*t)[0]

    def ours(*t):
        return ops.lstm_gates(*t)[0]

    return Case(f"({batch},4*{hidden},{height},{width})", tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_conv_gru_cell(rng: random.Random) -> Case:
    batch, height, width = draw_size(rng)
    inputs, hidden = draw_log_uniform(rng, 1, 128), draw_log_uniform(rng, 4, 128)
    both = inputs + hidden
    check_size(2 * hidden * batch * height * width, 54.0 * batch * height * width * hidden * both)
    weights = [draw_normal(n * hidden, both, 3, 3) / (3 * both**0.5) for n in (2, 1)]
    tensors = draw_normal(batch, inputs, height, width), draw_normal(batch, hidden, height, width), *weights

    def peer(x, h, gates, candidate):
        return compute_gru_cell(x, h, gates, None, candidate, None)

    def ours(x, h, gates, candidate):
        return ops.conv_gru_cell(x, h, gates, None, candidate, None)

    text = f"({batch},{inputs}+{hidden},{height},{width})"
    return Case(text, tensors, ours, {"torch": peer, "torch channels_last": peer})


def draw_window_attention2d(rng: random.Random) -> Case:
    (batch, height, width), window = draw_size(rng), 2 * draw_log_uniform(rng, 1, 15)
    width_of_head = draw_log_uniform(rng, 1, 64)
    check_size(batch * width_of_head * window**2 * height * width)  # the tensor that the peer unfolds
    tensors = tuple(0.7 * draw_normal(batch, width_of_head, height, width) for _ in range(3))

    def peer(q, k, v):
        half = window // 2
        k, v = (F.unfold(F.pad(t, (half, window - half - 1) * 2), window).unflatten(1, (-1, window**2)) for t in (k, v))
        weights = torch.einsum("bcp,bcnp->bnp", q.flatten(2), k).softmax(1)
        return torch.einsum("bnp,bcnp->bcp", weights, v).view(q.shape)

    text = f"({batch},{width_of_head},{height},{width}), window {window}"
    peers = {"torch": peer, "torch channels_last": peer}
    return Case(text, tensors, lambda *t: ops.window_attention2d(*t, window=window), peers)


def draw_inr_query(rng: random.Random) -> Case:
    """Draw a LIIF decoder of random width, depth, size and scale; the peer is the published code."""
    from bench.bench_inr_query import compute_published_liif, make_coordinates

    inputs, hidden, outputs = draw_log_uniform(rng, 4, 96), 8 * draw_log_uniform(rng, 1, 32), rng.randint(1, 6)
    source, scale = (draw_log_uniform(rng, 5, 100), draw_log_uniform(rng, 5, 100)), rng.uniform(1.2, 8)
    target = tuple(round(scale * n) for n in source)
    widths = (9 * inputs + 4, *[hidden] * rng.randint(1, 4), outputs)
    products = sum(a * b for a, b in itertools.pairwise(widths))
    queries = target[0] * target[1]
    check_size(min(queries, 30_000) * max(widths), 8.0 * queries * products)
    layers = [(draw_normal(b, a) / a**0.5, draw_normal(b)) for a, b in itertools.pairwise(widths)]
    coord, cell, grid = (
        make_coordinates(target),
        torch.tensor([[2 / scale, 2 / scale]]),
        ops.GridSpec.cells(source, target),
    )

    def pair(parameters):
        return list(zip(parameters[::2], parameters[1::2], strict=True))

    def ours(x, w, b, *others):
        kernel = w[:, :-4].unflatten(1, (inputs, 3, 3))
        size = {"rho_w": w[:, -4:-2].float(), "cell_w": w[:, -2:].float(), "cell": cell, "ensemble": "late"}
        return ops.inr_query(ops.conv3x3(x, kernel, b), grid, pair([t.float() for t in others]), **size)

    def peer(x, *parameters):
        return compute_published_liif(x, coord, cell, pair(parameters))

    tensors = (draw_normal(1, inputs, *source), *(t for layer in layers for t in layer))
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


def draw_cases(op: str, shapes: int, seed: int) -> Iterator[tuple[Case, str, str]]:
    """Draw cases of an op.

    Args:
        op: key of OPS.
        shapes: number of cases.
        seed: seed of shapes and values.

    Yields:
        Case, memory format ("contiguous" or "channels_last") and mode ("forward" or "step").
    """
    rng = random.Random(f"{op} {seed}")
    torch.manual_seed(seed)
    count = 0
    while count < shapes:
        try:
            case = OPS[op](rng)
        except TooLargeError:
            continue
        count += 1
        yield case, rng.choice(("contiguous", "channels_last")), rng.choice(("forward", "step"))


def convert_tensors(tensors: tuple[Tensor, ...], layout: str, dtype: torch.dtype) -> list[Tensor]:
    """Return the tensors in a dtype, those of four dimensions in a memory format."""
    fmt = CHANNELS_LAST if layout == "channels_last" else torch.contiguous_format
    return [t.to(dtype).contiguous(memory_format=fmt) if t.dim() == 4 else t.to(dtype) for t in tensors]


def make_program(function: Callable, tensors: list[Tensor], mode: str) -> Callable[[], object]:
    """Return the callable to time.

    Args:
        function: function of the tensors.
        tensors: its arguments.
        mode: "forward" for the value without a graph, "step" for the value and the gradients of all tensors.
    """
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    cotangent = torch.ones_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def measure(case: Case, layout: str, mode: str, dtype: torch.dtype) -> dict:
    """Measure fastds and all peers on one shape.

    Args:
        case: the call.
        layout: memory format of the tensors of fastds, "contiguous" or "channels_last".
        mode: "forward" or "step".
        dtype: dtype of the tensors.

    Returns:
        The row as bench.result_files.save_sweep() takes it, with the key ratio. ms, best_ms and peers are
        milliseconds.
    """
    runs = {"fastds": make_program(case.ours, convert_tensors(case.tensors, layout, dtype), mode)}
    for name, peer in case.peers.items():
        if name == "onnxruntime":
            if mode == "forward" and dtype == torch.float32:
                runs[name] = peer
            continue
        peer_layout = "channels_last" if "channels_last" in name else layout
        runs[name] = make_program(peer, convert_tensors(case.tensors, peer_layout, dtype), mode)
    before = measure_core_latency_ns()
    seconds = interleaved_timing.measure_fastest_calls(runs)
    latency = max(before, measure_core_latency_ns())
    peers = {name: 1e3 * second for name, second in seconds.items() if name != "fastds"}
    best = min(peers, key=peers.get)
    return {
        "shape": case.text, "layout": layout, "mode": mode, "ms": 1e3 * seconds["fastds"], "best": best,
        "best_ms": peers[best], "ratio": 1e-3 * peers[best] / seconds["fastds"], "peers": peers,
        "core_latency_ns": round(latency),
    }  # fmt: skip


def measure_all(op: str, shapes: int, seed: int, dtype: torch.dtype) -> list[dict]:
    """Measure all shapes once and return their rows; see draw_cases()."""
    rows = []
    for number, (case, layout, mode) in enumerate(draw_cases(op, shapes, seed), 1):
        rows.append(measure(case, layout, mode, dtype))
        print(f"{number}/{shapes} {rows[-1]['shape']} {layout} {mode}: {rows[-1]['ratio']:.2f}", flush=True)
    return rows


def format_summary(rows: list[dict]) -> str:
    """Return a table with one line per mode and memory format."""
    lines = []
    for mode, layout in sorted({(r["mode"], r["layout"]) for r in rows}):
        ratios = [r["ratio"] for r in rows if (r["mode"], r["layout"]) == (mode, layout)]
        lines.append((f"{mode}, {layout}", *summarize_ratios(ratios)))
    return format_table(("mode, layout", *RATIO_COLUMNS), lines)


def format_short_calls(rows: list[dict]) -> str:
    """Return how many of the calls that take less than SHORT_MS are slower than the fastest peer."""
    short = [row for row in rows if min(row["ms"], row["best_ms"]) < SHORT_MS]
    slow = sum(row["ratio"] < SLOW for row in short)
    ratio = statistics.median(row["ratio"] for row in short) if short else math.nan
    return f"slower in {slow} of {len(short)} calls that take less than {SHORT_MS} ms, median ratio {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", choices=sorted(OPS))
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=0.05, help="for fastds and for each peer, per shape and round")
    parser.add_argument("--rounds", type=int, default=3, help="over all shapes; the round with the median ratio counts")
    parser.add_argument("--small", action="store_true", help="draw small calls, whose time is mostly overhead")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="limit fastds and torch to AVX2")
    options = parser.parse_args()
    if options.small and options.save:
        parser.error("--save: sweeps of small calls are not saved")
    if options.avx2:
        limit_to_avx2()
    if options.small:
        LIMITS.numbers, LIMITS.flops = SMALL.numbers, SMALL.flops
    interleaved_timing.SECONDS = options.seconds
    set_malloc_retention()
    load, dtype = os.getloadavg()[0], getattr(torch, options.dtype)
    rounds = [measure_all(options.op, options.shapes, options.seed, dtype) for _ in range(options.rounds)]
    rows = [sorted(same, key=lambda r: r["ratio"])[len(same) // 2] for same in zip(*rounds, strict=True)]
    shared = {"op": options.op, "dtype": options.dtype, "seed": options.seed, "load": round(load, 1)}
    shared |= describe_cpu_run()
    print(f"\n{shared}\n\n{format_summary(rows)}\n\nslower than the fastest peer:")
    line = (
        "{ratio:.2f} {shape} {layout} {mode}: {ms:.3g} ms, {best} {best_ms:.3g} ms; core latency {core_latency_ns} ns"
    )
    for row in sorted((r for r in rows if r["ratio"] < SLOW), key=lambda r: r["ratio"]):
        print(line.format(**row))
    if options.small:
        print(format_short_calls(rows))
    slow = sum(r["core_latency_ns"] > SLOW_NS for r in rows)
    print(f"the latency between two processors was above {SLOW_NS:.0f} ns in {slow} of {len(rows)} shapes")
    if options.save:
        print(f"\nsaved {save_sweep(shared, rows)}")


if __name__ == "__main__":
    main()
