# SPDX-License-Identifier: Apache-2.0
"""Benchmark of pixel_shuffle against bias, activation and F.pixel_shuffle in torch.

"% of ceiling" refers to the rate of a copy.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import pixel_shuffle

# (batch, fine channels, coarse height, coarse width, factor): layers of the humidity generator and of FC-ZSM, then
# output layers of factors 3, 4 and 8.
CASES = {
    f"({b},{c}*{r * r},{h},{w}) x{r}": (b, c, h, w, r)
    for b, c, h, w, r in [
        (8, 256, 16, 16, 2), (8, 256, 32, 32, 2), (1, 64, 200, 200, 1), (1, 64, 100, 100, 2), (2, 64, 64, 64, 3),
        (1, 64, 64, 64, 4), (1, 32, 48, 48, 8), (4, 1, 128, 128, 4),
    ]
}  # fmt: skip
ROWS = [
    ("fastds", torch.float32), ("fastds", torch.bfloat16), ("eager", torch.float32), ("eager", torch.bfloat16),
    ("copy", torch.float32), ("copy", torch.bfloat16),
]  # fmt: skip


def make_tensors(case, dtype):
    """Return input, bias, gradient of the result and factor."""
    b, c, h, w, r = CASES[case]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(b, c * r * r, h, w, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(b, c, h * r, w * r, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(c * r * r, generator=generator).to(dtype), grad, r


def compute_in_torch(x, bias, r):
    return F.pixel_shuffle(F.leaky_relu_(x + bias[:, None, None], 0.1), r)


def build(peer, case, mode, dtype):
    """Build the callable to time.

    Args:
        peer: "fastds", "eager", or "copy" for copies with about the same memory traffic.
        case: key of CASES.
        mode: "forward" for the value, "backward" for the gradients of x and bias.
        dtype: dtype of the tensors.
    """
    x, bias, grad, r = make_tensors(case, dtype)
    if peer == "copy":
        return x.clone if mode == "forward" else lambda: (x.clone(), x.clone())
    if mode == "forward":

        def run():
            with torch.no_grad():
                return pixel_shuffle(x, r, bias, "leaky_relu") if peer == "fastds" else compute_in_torch(x, bias, r)

        return run
    x, bias = x.requires_grad_(), bias.requires_grad_()
    y = pixel_shuffle(x, r, bias, "leaky_relu") if peer == "fastds" else compute_in_torch(x, bias, r)
    return lambda: torch.autograd.grad(y, (x, bias), grad, retain_graph=True)


@functools.lru_cache(maxsize=1)
def compute_expected(peer, case, mode, dtype):
    if peer == "copy":
        x = make_tensors(case, dtype)[0]
        return x if mode == "forward" else (x, x)
    x, bias, grad, r = (t.double() if isinstance(t, torch.Tensor) else t for t in make_tensors(case, dtype))
    if mode == "forward":
        return compute_in_torch(x, bias, r)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    return torch.autograd.grad(compute_in_torch(*leaves, r), leaves, grad)


@pytest.mark.parametrize("peer,dtype", ROWS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_pixel_shuffle(measure, case, mode, peer, dtype):
    x = make_tensors(case, dtype)[0]
    # Forward reads x and writes y. Backward reads the gradient and y and writes the gradient of x.
    measure(
        build, (peer, case, mode, dtype), op="pixel_shuffle", case=case, mode=mode, peer=peer,
        yardstick=peer == "copy", dtype=str(dtype).removeprefix("torch."), flops=0,
        bytes=x.nbytes * (2 if mode == "forward" else 4 if peer == "copy" else 3),
        expected=compute_expected(peer, case, mode, dtype), tolerance=1e-4 if dtype == torch.float32 else 5e-2,
    )  # fmt: skip
