# SPDX-License-Identifier: Apache-2.0
"""window_attention2d with window 30 on 24 channels, compared with unfolding and with a loop over rows on views."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import window_attention2d

WINDOW = 30
CASES = {"(1,24,80,80)": (1, 24, 80, 80), "(1,24,40,40)": (1, 24, 40, 40)}


def pad(*tensors):
    half = WINDOW // 2
    return [F.pad(t, (half, WINDOW - half - 1) * 2) for t in tensors]


def attend_by_unfolding(q, k, v):
    batch, channels, height, width = q.shape
    k, v = (F.unfold(t, WINDOW).view(batch, channels, WINDOW**2, height * width) for t in pad(k, v))
    weights = torch.einsum("bcp,bcnp->bnp", q.flatten(2), k).softmax(1)
    return torch.einsum("bnp,bcnp->bcp", weights, v).view_as(q)


def attend_by_views(q, k, v):
    """Compute window attention for one window row at a time on views, with a running maximum for the softmax."""
    height, width = q.shape[2:]
    k, v = pad(k, v)
    top = total = sums = None
    for row in range(WINDOW):
        keys = k[:, :, row : row + height].unfold(3, WINDOW, 1)  # (B, C, H, W, window), a view
        values = v[:, :, row : row + height].unfold(3, WINDOW, 1)
        logits = (q.unsqueeze(4) * keys).sum(1)
        highest = logits.amax(3) if top is None else torch.maximum(top, logits.amax(3))
        weights = (logits - highest[..., None]).exp()
        part = (weights.unsqueeze(1) * values).sum(4)
        factor = 0.0 if top is None else (top - highest).exp()
        total = weights.sum(3) + (0 if top is None else total * factor)
        sums = part if top is None else sums * factor.unsqueeze(1) + part
        top = highest
    return sums / total.unsqueeze(1)


PEERS = {
    "fastds": functools.partial(window_attention2d, window=WINDOW),
    "view_loop": attend_by_views,
    "unfold": attend_by_unfolding,
}


def make_tensors(case):
    generator = torch.Generator().manual_seed(7)
    return [0.7 * torch.randn(CASES[case], generator=generator) for _ in range(3)]


def build(case, mode, peer):
    """Build the callable to time.

    Args:
        case: key of CASES.
        mode: "forward" for the value, "forward+backward" for the gradients of q, k and v.
        peer: key of PEERS.
    """
    arguments = make_tensors(case)
    if mode == "forward":

        def run():
            with torch.no_grad():
                return PEERS[peer](*arguments)

        return run
    arguments = [t.requires_grad_() for t in arguments]
    return lambda: torch.autograd.grad(PEERS[peer](*arguments).sum(), arguments)


@functools.lru_cache(maxsize=1)
def compute_expected(case, mode):
    arguments = [t.double() for t in make_tensors(case)]
    if mode == "forward":
        return attend_by_views(*arguments)
    arguments = [t.requires_grad_() for t in arguments]
    return torch.autograd.grad(attend_by_views(*arguments).sum(), arguments)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("case", CASES)
def test_window_attention2d(measure, case, mode, peer):
    batch, channels, height, width = CASES[case]
    numbers = batch * channels * height * width
    flops = 4 * numbers * WINDOW**2 * (1 if mode == "forward" else 3)
    measure(
        build, (case, mode, peer), op="window_attention2d", case=case, mode=mode, peer=peer, dtype="float32",
        flops=flops, bytes=4 * numbers * 4, expected=compute_expected(case, mode), tolerance=1e-4,
    )  # fmt: skip
