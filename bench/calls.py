# SPDX-License-Identifier: Apache-2.0
"""Overhead of a call of each public op and cell: `python -m bench.calls [--autocast] [--csv FILE]`.

The tensors have the shape (1, 8, 4, 4) in channels_last, so that the overhead dominates the time of a call: argument
checks, selection of a kernel, allocation and the call of the kernel. Each op is timed interleaved with the same formula
in PyTorch: without gradients, the forward pass with gradients, and the forward and backward pass. A time is the least
CPU time of the thread over many short rounds, with one thread.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.torch_cells import compute_gru, compute_gru_cell, compute_lstm, compute_lstm_cell, update_memory
from fastds import nn, ops

CHANNELS, SIDE = 8, 4
ROUNDS, ROUND_SECONDS = 40, 0.002
MODES = ("no_grad", "forward with gradients", "forward and backward")


@dataclass
class Call:
    """An op of fastds, the same formula in PyTorch, and the arguments of both."""

    ours: Callable[..., object]
    torch: Callable[..., object]
    tensors: list[Tensor]


def compute_trajectory_gates(x_part: Tensor, h_part: Tensor, h: Tensor) -> Tensor:
    """Return the new state of a TrajGRU from the parts of its pre-activations, order z, r, n."""
    (zx, rx, nx), (zh, rh, nh) = x_part.chunk(3, 1), h_part.chunk(3, 1)
    z, r = torch.sigmoid(zx + zh), torch.sigmoid(rx + rh)
    return (1 - z) * F.leaky_relu(nx + r * nh, 0.2) + z * h


def attend_by_unfolding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of each pixel to the 3 x 3 pixels around it."""
    k, v = (F.unfold(t, 3, padding=1).view(*t.shape[:2], 9, *t.shape[2:]) for t in (k, v))
    weights = (q[:, :, None] * k).sum(1).softmax(1)
    return (weights[:, None] * v).sum(2)


def query_by_grid_sample(maps: Tensor, points: Tensor, w: Tensor, b: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """Return a network of two layers of bilinear values of feature maps.

    Args:
        maps: (1, C, H, W).
        points: (1, Q, 1, 2), normalised coordinates (x, y).
        w: (D, C), weight of the first layer.
        b: (D,), its bias.
        v: (O, D), weight of the second layer.
        d: (O,), its bias.
    """
    values = F.grid_sample(maps, points, padding_mode="border", align_corners=False)[..., 0].transpose(1, 2)
    return F.linear(F.relu(F.linear(values, w, b)), v, d)


def list_calls() -> dict[str, Call]:
    """Return the calls by name. The peer of deform_conv2d is a clone, because PyTorch has no such operator."""
    torch.manual_seed(0)
    c = CHANNELS

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape)
        return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x

    x, h, state, bias = draw(1, c, SIDE, SIDE), draw(1, c, SIDE, SIDE), draw(1, c, SIDE, SIDE), draw(c)
    three, one, five = draw(c, c, 3, 3), draw(c, c, 1, 1), draw(c, c, 5, 5)
    pre4, pre3, part3 = (draw(1, k * c, SIDE, SIDE) for k in (4, 3, 3))
    four, bias4 = draw(4 * c, 2 * c, 3, 3), draw(4 * c)
    two, bias2, candidate = draw(2 * c, 2 * c, 3, 3), draw(2 * c), draw(c, 2 * c, 3, 3)
    offset, mask = draw(1, 18, SIDE, SIDE), draw(1, 9, SIDE, SIDE)

    def add_leaky(x: Tensor, w: Tensor, b: Tensor, residual: Tensor) -> Tensor:
        return F.leaky_relu(F.conv2d(x, w, b, padding=1) + residual, 0.1)

    def compute_reset(z: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(z), torch.sigmoid(r) * h

    def compute_st_gates(x: Tensor, h: Tensor, c: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pre = F.conv2d(torch.cat([x, h], 1), w, b, padding=1)
        return update_memory(c, *pre[:, : 3 * CHANNELS].chunk(3, 1)), pre[:, 3 * CHANNELS :].clone()

    cell = nn.ConvLSTMCell(c, c)
    sequence = draw(4 * c, SIDE, SIDE).view(1, 4, c, SIDE, SIDE)

    def run_torch_sequence(x: Tensor) -> Tensor:
        h = s = torch.zeros_like(x[:, 0])
        states = []
        for k in range(x.shape[1]):
            h, s = compute_lstm_cell(x[:, k], h, s, cell.gates.weight, cell.gates.bias)
            states.append(h)
        return torch.stack(states, 1)

    grid = ops.GridSpec.cells((SIDE, SIDE), (SIDE, SIDE))
    centres = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    points = torch.stack(torch.meshgrid(centres, centres, indexing="ij")[::-1], -1).view(1, -1, 1, 2)

    def query(maps: Tensor, w: Tensor, b: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return ops.inr_query(maps, grid, [(w, b), (v, d)], ensemble="early_area", activation="none")

    calls = {
        "null_op": Call(ops.null_op, torch.clone, [x]),
        "conv3x3": Call(ops.conv3x3, lambda x, w, b: F.conv2d(x, w, b, padding=1), [x, three, bias]),
        "conv3x3 + residual + leaky_relu": Call(
            lambda x, w, b, r: ops.conv3x3(x, w, b, residual=r, activation="leaky_relu"), add_leaky, [x, three, bias, h]
        ),
        "conv1x1": Call(ops.conv1x1, F.conv2d, [x, one, bias]),
        "conv2d 5x5": Call(ops.conv2d, lambda x, w, b: F.conv2d(x, w, b, padding=2), [x, five, bias]),
        "deform_conv2d": Call(
            lambda x, o, w, b, m: ops.deform_conv2d(x, o, w, b, padding=1, mask=m),
            lambda x, o, w, b, m: x.clone(),
            [x, offset, three, bias, mask],
        ),
        "lstm_gates": Call(ops.lstm_gates, compute_lstm, [pre4, state]),
        "memory_gates": Call(ops.memory_gates, lambda pre, c: update_memory(c, *pre.chunk(3, 1)), [pre3, state]),
        "output_gate": Call(ops.output_gate, lambda p, v: torch.sigmoid(p) * torch.tanh(v), [x, state]),
        "gru_reset": Call(ops.gru_reset, compute_reset, [x, h, state]),
        "gru_update": Call(ops.gru_update, compute_gru, [x, h, state]),
        "traj_gru_gates": Call(ops.traj_gru_gates, compute_trajectory_gates, [pre3, part3, state]),
        "conv_lstm_cell": Call(ops.conv_lstm_cell, compute_lstm_cell, [x, h, state, four, bias4]),
        "conv_gru_cell": Call(ops.conv_gru_cell, compute_gru_cell, [x, h, two, bias2, candidate, bias]),
        "conv_st_lstm_gates": Call(ops.conv_st_lstm_gates, compute_st_gates, [x, h, state, four, bias4]),
        "pixel_shuffle": Call(lambda x: ops.pixel_shuffle(x, 2), lambda x: F.pixel_shuffle(x, 2), [x]),
        "pixel_unshuffle": Call(lambda x: ops.pixel_unshuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2), [x]),
        "window_attention2d 3x3": Call(
            lambda q, k, v: ops.window_attention2d(q, k, v, window=3), attend_by_unfolding, [x, h, state]
        ),
        "inr_query": Call(
            query,
            lambda maps, *layers: query_by_grid_sample(maps, points, *layers),
            [x, draw(c, c), bias, draw(3, c), draw(3)],
        ),
        "ConvLSTMCell.sequence, 4 steps": Call(lambda x: cell.sequence(x)[0], run_torch_sequence, [sequence]),
    }
    return calls


def make_run(function: Callable[..., object], tensors: list[Tensor], mode: str) -> Callable[[], None]:
    """Return a function without arguments that makes one call on copies of the tensors.

    Args:
        function: function of the tensors.
        tensors: its arguments.
        mode: one of MODES.
    """
    copies = [t.detach().clone().requires_grad_(mode != MODES[0]) for t in tensors]

    def forward() -> None:
        with torch.no_grad():
            function(*copies)

    def step() -> None:
        for t in copies:
            t.grad = None
        result = function(*copies)
        results = [result] if isinstance(result, Tensor) else list(result)
        torch.autograd.backward(results, cotangents)

    if mode == MODES[0]:
        return forward
    if mode == MODES[1]:
        return lambda: function(*copies)
    result = function(*copies)
    cotangents = [torch.randn_like(y) for y in ([result] if isinstance(result, Tensor) else result)]
    return step


def time_calls(runs: list[Callable[[], None]]) -> list[float]:
    """Return the least microseconds per call of each function, over interleaved rounds."""
    least, counts = [float("inf")] * len(runs), []
    for run in runs:
        for _ in range(50):
            run()
        start = time.thread_time()
        for _ in range(20):
            run()
        counts.append(max(1, int(ROUND_SECONDS / max((time.thread_time() - start) / 20, 1e-7))))
    for _ in range(ROUNDS):
        for k, (run, count) in enumerate(zip(runs, counts, strict=True)):
            start = time.thread_time()
            for _ in range(count):
                run()
            least[k] = min(least[k], (time.thread_time() - start) / count * 1e6)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="file to write the rows to")
    parser.add_argument("--only", help="name of one call")
    parser.add_argument("--autocast", action="store_true", help="time the calls under bfloat16 autocast")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    torch.set_autocast_enabled("cpu", options.autocast)
    print(f"{'microseconds a call':34}" + "".join(f"{mode + ' (torch)':>34}" for mode in MODES))
    for name, call in list_calls().items():
        if options.only not in (None, name):
            continue
        cells = []
        for mode in MODES:
            ours, peer = time_calls([make_run(f, call.tensors, mode) for f in (call.ours, call.torch)])
            cells.append((ours, peer))
            rows.append({"call": name, "mode": mode, "ours_us": f"{ours:.2f}", "torch_us": f"{peer:.2f}"})
        print(f"{name:34}" + "".join(f"{f'{ours:.1f} ({peer:.1f})':>34}" for ours, peer in cells), flush=True)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
