# SPDX-License-Identifier: Apache-2.0
"""pixel_shuffle against bias, activation and F.pixel_shuffle; a row's percent of ceiling is that of the copy rate."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import pixel_shuffle

# Fine channels, coarse size, factor: the x2 chain of the humidity generator, FC-ZSM's layer, x3, x4 and x8 heads.
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


def tensors(case, dtype):
    b, c, h, w, r = CASES[case]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(b, c * r * r, h, w, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(b, c, h * r, w * r, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(c * r * r, generator=generator).to(dtype), grad, r


def composite(x, bias, r):
    return F.pixel_shuffle(F.leaky_relu_(x + bias[:, None, None], 0.1), r)


def build(peer, case, mode, dtype):
    x, bias, grad, r = tensors(case, dtype)
    if peer == "copy":
        return x.clone if mode == "forward" else lambda: (x.clone(), x.clone())
    if mode == "forward":

        def run():
            with torch.no_grad():
                return pixel_shuffle(x, r, bias, "leaky_relu") if peer == "fastds" else composite(x, bias, r)

        return run
    x, bias = x.requires_grad_(), bias.requires_grad_()
    y = pixel_shuffle(x, r, bias, "leaky_relu") if peer == "fastds" else composite(x, bias, r)
    return lambda: torch.autograd.grad(y, (x, bias), grad, retain_graph=True)


@functools.lru_cache(maxsize=1)
def expected(peer, case, mode, dtype):
    if peer == "copy":
        x = tensors(case, dtype)[0]
        return x if mode == "forward" else (x, x)
    x, bias, grad, r = (t.double() if isinstance(t, torch.Tensor) else t for t in tensors(case, dtype))
    if mode == "forward":
        return composite(x, bias, r)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    return torch.autograd.grad(composite(*leaves, r), leaves, grad)


@pytest.mark.parametrize("peer,dtype", ROWS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_pixel_shuffle(measure, case, mode, peer, dtype):
    x = tensors(case, dtype)[0]
    # Forward reads x and writes y; backward reads the gradient and y and writes the gradient of x.
    measure(
        build, (peer, case, mode, dtype), op="pixel_shuffle", case=case, mode=mode, peer=peer,
        yardstick=peer == "copy", dtype=str(dtype).removeprefix("torch."), flops=0,
        bytes=x.nbytes * (2 if mode == "forward" else 4 if peer == "copy" else 3),
        expected=expected(peer, case, mode, dtype), tolerance=1e-4 if dtype == torch.float32 else 5e-2,
    )  # fmt: skip
