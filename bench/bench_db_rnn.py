# SPDX-License-Identifier: Apache-2.0
"""The DB-RNN family against the same networks in straightforward eager torch.

The straightforward network is fastds.models.db_rnn.oracle: contiguous layout, a convolution per summand, nothing fused
or hoisted; its local attention loops over window rows on views. Batch 4, 160x160, 5 known frames and 5 forecast ones,
so 9 steps. A training step is forward, the paper's pixel loss, backward and Adam. FLOPs are those of that graph without
the core of the attention. "fastds kept gates" keeps the gates for the backward (recompute=False). `launches` counts the
operators that a call runs, views aside. Eager rows take one timed call, or the file would take a quarter of an hour.
"""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastds.models import create
from fastds.models.db_rnn import oracle as reference
from fastds.models.db_rnn.losses import pixel_loss

BATCH, SIZE, KNOWN, STEPS = 4, 160, 5, 5
GIGA_MACS = {"ms-convlstm": 25.17, "ms-predrnn": 51.02, "db-convlstm": 50.34, "ms-preciplstm": 99.80}  # of one sample
# Batch, size: the view loop takes minutes otherwise, and its graph tens of gigabytes.
SMALLER = {("ms-preciplstm", "forward"): (1, 80), ("ms-preciplstm", "training step"): (1, 40)}
PEERS = {"forward": ("fastds", "torch_eager"), "training step": ("fastds", "fastds kept gates", "torch_eager")}
KEPT = ("ms-convlstm", "ms-predrnn")  # where the price of recomputing is measured
ROWS = [
    (name, mode, peer)
    for name in GIGA_MACS
    for mode, peers in PEERS.items()
    for peer in peers
    if peer != "fastds kept gates" or name in KEPT
]


def attention_by_rows(q, k, v, window):
    """One window row at a time on views, softmax by a running maximum."""
    from bench.bench_window_attention2d import WINDOW, view_loop

    assert window == WINDOW
    return view_loop(q, k, v)


def sizes(name: str, mode: str) -> tuple[int, int]:
    return SMALLER.get((name, mode), (BATCH, SIZE))


def sample(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Known frames and the truth of frames 1 to 9: smooth blobs between 0 and 1."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.rand(batch * (KNOWN + STEPS), 1, size // 8, size // 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    frames = frames.view(batch, KNOWN + STEPS, 1, size, size)
    return frames[:, :KNOWN], frames[:, 1:]


def forward_of(peer: str, name: str, model):
    if peer.startswith("fastds"):
        return lambda frames: model(frames, STEPS)
    reference.attention = attention_by_rows
    run = reference.db_rnn if name.startswith("db-") else reference.ms_rnn
    return lambda frames: run(model, frames, STEPS)


def build(name: str, mode: str, peer: str, case: tuple[int, int], dtype: torch.dtype = torch.float32):
    """The callable to time: all forecasts, or the loss and all gradients in one vector. case: batch and size."""
    torch.manual_seed(5)
    model = create(name, recompute=peer != "fastds kept gates").to(dtype)
    frames, truth = (t.to(dtype) for t in sample(*case))
    run = forward_of(peer, name, model)
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return torch.cat(run(frames), 1)

        return forward
    optimiser = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimiser.zero_grad()
        loss = sum(pixel_loss(y, truth) for y in run(frames))
        loss.backward()
        optimiser.step()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    return step


@functools.lru_cache(maxsize=1)
def expected(name: str, mode: str):
    """The graph of a training step in float64 would not fit in memory: there float32 stands for it."""
    dtype = torch.float64 if mode == "forward" else torch.float32
    return build(name, mode, "torch_eager", sizes(name, mode), dtype)()


class Launches(TorchDispatchMode):
    """Counts operators that are no views, backward included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def flops(name: str, mode: str) -> float:
    batch, size = sizes(name, mode)
    return 2e9 * GIGA_MACS[name] * batch * (size / 160) ** 2 * (1 if mode == "forward" else 3)


@pytest.mark.parametrize("name, mode, peer", [pytest.param(*row, id="-".join(row).replace(" ", "_")) for row in ROWS])
def test_db_rnn(measure, benchmark, name, mode, peer):
    batch, size = case = sizes(name, mode)
    measure(
        build, (name, mode, peer, case), op=name, case=f"({batch},{KNOWN},1,{size},{size})", mode=mode, peer=peer,
        dtype="float32", flops=flops(name, mode), bytes=0, expected=expected(name, mode),
        tolerance=1e-4 if mode == "forward" else 1e-3, least_rounds=1 if peer == "torch_eager" else 3,
    )  # fmt: skip
    run = build(name, mode, peer, (1, 32))  # as many at every size
    with Launches() as launches:
        run()
    benchmark.extra_info["launches"] = launches.count
