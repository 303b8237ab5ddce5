# SPDX-License-Identifier: Apache-2.0
"""window_attention2d, window 30 on 24 channels, against unfolding and a loop over window rows on views."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import window_attention2d

WINDOW = 30
CASES = {"(1,24,80,80)": (1, 24, 80, 80), "(1,24,40,40)": (1, 24, 40, 40)}


def padded(*maps):
    half = WINDOW // 2
    return [F.pad(t, (half, WINDOW - half - 1) * 2) for t in maps]


def unfold(q, k, v):
    batch, channels, height, width = q.shape
    k, v = (F.unfold(t, WINDOW).view(batch, channels, WINDOW**2, height * width) for t in padded(k, v))
    weights = torch.einsum("bcp,bcnp->bnp", q.flatten(2), k).softmax(1)
    return torch.einsum("bnp,bcnp->bcp", weights, v).view_as(q)


def view_loop(q, k, v):
    """One window row at a time on views, softmax by a running maximum."""
    height, width = q.shape[2:]
    k, v = padded(k, v)
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


PEERS = {"fastds": functools.partial(window_attention2d, window=WINDOW), "view_loop": view_loop, "unfold": unfold}


def tensors(case):
    generator = torch.Generator().manual_seed(7)
    return [0.7 * torch.randn(CASES[case], generator=generator) for _ in range(3)]


def build(case, mode, peer):
    arguments = tensors(case)
    if mode == "forward":

        def run():
            with torch.no_grad():
                return PEERS[peer](*arguments)

        return run
    arguments = [t.requires_grad_() for t in arguments]
    return lambda: torch.autograd.grad(PEERS[peer](*arguments).sum(), arguments)


@functools.lru_cache(maxsize=1)
def expected(case, mode):
    arguments = [t.double() for t in tensors(case)]
    if mode == "forward":
        return view_loop(*arguments)
    arguments = [t.requires_grad_() for t in arguments]
    return torch.autograd.grad(view_loop(*arguments).sum(), arguments)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("case", CASES)
def test_window_attention2d(measure, case, mode, peer):
    batch, channels, height, width = CASES[case]
    one = batch * channels * height * width
    flops = 4 * one * WINDOW**2 * (1 if mode == "forward" else 3)
    measure(
        build, (case, mode, peer), op="window_attention2d", case=case, mode=mode, peer=peer, dtype="float32",
        flops=flops, bytes=4 * one * 4, expected=expected(case, mode), tolerance=1e-4,
    )  # fmt: skip
