# SPDX-License-Identifier: Apache-2.0
"""Networks of the DB-RNN family compared with their reference implementation in eager torch.

The reference, tests.references.db_rnn, uses contiguous tensors and one convolution per summand, without fusion; its
local attention loops over window rows on views. Batch 4, 160 x 160 pixels, five known and five forecast frames, which
take nine time steps. A training step is the forward pass, the pixel loss of the paper, the backward pass and Adam.
FLOPs are those of the reference without the attention itself. "fastds saved gates" saves the gates for the backward
pass (recompute=False). `launches` counts the operators of one call except views. Rows of eager torch have one timed
call.
"""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastds.models import create
from fastds.models.db_rnn.losses import pixel_loss
from tests.references import db_rnn as reference

BATCH, SIZE, KNOWN, STEPS = 4, 160, 5, 5
GIGA_MACS = {
    "ms-convlstm": 25.17,
    "ms-predrnn": 51.02,
    "db-convlstm": 50.34,
    "ms-preciplstm": 99.80,
}  # of one sample of 160 x 160 pixels
# Batch and size where the reference would need minutes and tens of gigabytes.
SMALLER = {("ms-preciplstm", "forward"): (1, 80), ("ms-preciplstm", "training step"): (1, 40)}
PEERS = {"forward": ("fastds", "torch_eager"), "training step": ("fastds", "fastds saved gates", "torch_eager")}
SAVED_GATES = ("ms-convlstm", "ms-predrnn")  # networks whose cost of recomputing gates is measured
ROWS = [
    (name, mode, peer)
    for name in GIGA_MACS
    for mode, peers in PEERS.items()
    for peer in peers
    if peer != "fastds saved gates" or name in SAVED_GATES
]


def compute_attention(q, k, v, window):
    """Compute window attention by a loop over window rows on views."""
    from bench.bench_window_attention2d import WINDOW, attend_by_views

    assert window == WINDOW
    return attend_by_views(q, k, v)


def get_sizes(name: str, mode: str) -> tuple[int, int]:
    """Return the batch and the pixels each way."""
    return SMALLER.get((name, mode), (BATCH, SIZE))


def make_sample(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return known frames and the true frames 1 to 9: smooth fields between 0 and 1."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.rand(batch * (KNOWN + STEPS), 1, size // 8, size // 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    frames = frames.view(batch, KNOWN + STEPS, 1, size, size)
    return frames[:, :KNOWN], frames[:, 1:]


def make_forward(peer: str, name: str, model):
    """Return a function from known frames to all forecasts."""
    if peer.startswith("fastds"):
        return lambda frames: model(frames, STEPS)
    reference.attention = compute_attention
    run = reference.db_rnn if name.startswith("db-") else reference.ms_rnn
    return lambda frames: run(model, frames, STEPS)


def build(name: str, mode: str, peer: str, case: tuple[int, int], dtype: torch.dtype = torch.float32):
    """Build the callable to time.

    Args:
        name: preset.
        mode: "forward" for all forecasts, "training step" for the loss and all gradients in one vector.
        peer: peer of the row.
        case: batch and pixels each way.
        dtype: dtype of parameters and frames.
    """
    torch.manual_seed(5)
    model = create(name, recompute=peer != "fastds saved gates").to(dtype)
    frames, truth = (t.to(dtype) for t in make_sample(*case))
    run = make_forward(peer, name, model)
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return torch.cat(run(frames), 1)

        return forward
    optimizer = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimizer.zero_grad()
        loss = sum(pixel_loss(y, truth) for y in run(frames))
        loss.backward()
        optimizer.step()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    return step


@functools.lru_cache(maxsize=1)
def compute_expected(name: str, mode: str):
    """Compute the result of the reference. Training steps use float32: the float64 graph exceeds the memory."""
    dtype = torch.float64 if mode == "forward" else torch.float32
    return build(name, mode, "torch_eager", get_sizes(name, mode), dtype)()


class LaunchCounter(TorchDispatchMode):
    """Dispatch mode that counts operators except views, in forward and backward passes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_flops(name: str, mode: str) -> float:
    batch, size = get_sizes(name, mode)
    return 2e9 * GIGA_MACS[name] * batch * (size / 160) ** 2 * (1 if mode == "forward" else 3)


@pytest.mark.parametrize("name, mode, peer", [pytest.param(*row, id="-".join(row).replace(" ", "_")) for row in ROWS])
def test_db_rnn(measure, benchmark, name, mode, peer):
    batch, size = case = get_sizes(name, mode)
    measure(
        build, (name, mode, peer, case), op=name, case=f"({batch},{KNOWN},1,{size},{size})", mode=mode, peer=peer,
        dtype="float32", flops=count_flops(name, mode), bytes=0, expected=compute_expected(name, mode),
        tolerance=1e-4 if mode == "forward" else 1e-3, least_rounds=1 if peer == "torch_eager" else 3,
    )  # fmt: skip
    run = build(name, mode, peer, (1, 32))  # the number does not depend on the size
    with LaunchCounter() as launches:
        run()
    benchmark.extra_info["launches"] = launches.count
