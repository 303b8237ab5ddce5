# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA kernels of the gradients of pixel_shuffle on the emulator, against formulas in float64."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.impl.pixel_shuffle.op import _make_params

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAN = float("nan")
GUARD = 64  # elements of padding after each output; a kernel that writes to them is out of bounds


def poison(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size + GUARD,), NAN, dtype=dtype)


def place(values: Tensor, misaligned: bool) -> Tensor:
    """Return the values as channels_last memory that starts on a multiple of 16 bytes, or one element later."""
    flat = values.permute(0, 2, 3, 1).reshape(-1)
    memory = torch.empty(flat.numel() + 1, dtype=values.dtype)
    assert memory.data_ptr() % 16 == 0
    memory = memory[1:] if misaligned else memory[:-1]
    return memory.copy_(flat)


def run(emulator, grad_y, y, r, slope, wants, misaligned=False):
    """Return grad_x (B, C*r*r, H, W) or None and grad_bias or None of one call, whose outputs were poisoned.

    Args:
        emulator: the Emulator.
        grad_y: (B, C, H*r, W*r).
        y: the same shape or None without an activation.
        r: factor.
        slope: slope of the activation for negative results.
        wants: whether grad_x and grad_bias are computed.
        misaligned: whether the address of grad_y is one element after a multiple of 16 bytes.
    """
    batch, channels, height, width = grad_y.shape
    shape = batch, channels * r * r, height // r, width // r
    params = _make_params(shape, grad_y.dtype, r, "none" if y is None else "leaky_relu", slope)
    inputs = [place(grad_y, misaligned), None if y is None else place(y, False)]
    kept = [None if t is None else t.clone() for t in inputs]
    compute_dtype = torch.promote_types(grad_y.dtype, torch.float32)
    grad_x = poison(grad_y.numel(), grad_y.dtype) if wants[0] else None
    sums = poison(shape[1], compute_dtype) if wants[1] else None
    partials = poison(shape[1] * params.partials, compute_dtype) if wants[1] else None
    addresses = [native.get_address(t) for t in (*inputs, grad_x, sums, partials)]
    emulator.pixel_shuffle_backward_cuda(*addresses, params, 0, 0)
    for before, after in zip(kept, inputs, strict=True):
        assert after is None or torch.equal(before.view(torch.uint8), after.view(torch.uint8))
    for output in (grad_x, sums, partials):
        assert output is None or output[-GUARD:].isnan().all()
    if grad_x is not None:
        grad_x = grad_x[:-GUARD].view(batch, height // r, width // r, -1).permute(0, 3, 1, 2)
    return grad_x, None if sums is None else sums[:-GUARD]


def compare(emulator, shape, r, dtype, slope=0.1, has_y=True, wants=(True, True), misaligned=False):
    """Compare one call with the formulas in float64. shape: (B, C, H, W), fine channels and coarse pixels."""
    batch, channels, height, width = shape
    fine = batch, channels, height * r, width * r
    grad_y, y = (torch.randn(fine, dtype=torch.float64).to(dtype) for _ in range(2))
    y = y.where(torch.rand(fine) > 0.05, 0).to(dtype)  # the gradient at 0 is that of negative results
    grad_x, sums = run(emulator, grad_y, y if has_y else None, r, slope, wants, misaligned)
    grads = grad_y.double()
    if has_y:
        slope = torch.tensor(slope, dtype=torch.promote_types(dtype, torch.float32)).double()
        grads = torch.where(y > 0, grads, grads * slope)
    expected = F.pixel_unshuffle(grads, r)
    eps = torch.finfo(dtype).eps
    if grad_x is not None:  # one product, rounded to float32 and to the dtype
        rounding = {"rtol": 0.51 * eps if dtype.itemsize == 2 else eps, "atol": 2**-24 * (dtype == torch.float16)}
        torch.testing.assert_close(grad_x.double(), expected, **rounding)
    if sums is not None:
        scale = expected.abs().sum((0, 2, 3))  # sums in float32, or float64, of exact terms
        bound = 8 * torch.finfo(sums.dtype).eps * scale
        assert ((sums.double() - expected.sum((0, 2, 3))).abs() <= bound).all()


def draw(seed: int) -> dict:
    """Return the arguments of compare() for a random problem with up to 60,000 elements."""
    rng = random.Random(seed)
    r = rng.choice([1, 2, 2, 3, 4, 5, 6, 7, 8])
    channels = rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 33, 64, 100, rng.randint(1, 200)])
    while channels * r * r > 12_000:
        channels //= 2
    most = max(60_000 // (channels * r * r), 1)
    width = rng.randint(1, min(most, 150))
    height = rng.randint(1, min(max(most // width, 1), 40))
    batch = rng.randint(1, min(max(most // (width * height), 1), 4))
    return {
        "shape": (batch, channels, height, width), "r": r, "slope": rng.choice([0.0, 0.1, 0.3]),
        "has_y": rng.random() < 0.8, "wants": rng.choice([(True, True), (True, True), (True, False), (False, True)]),
        "misaligned": rng.random() < 0.15,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", range(0, 40, 5))
def test_drawn_shapes_agree_with_float64(emulated, first, dtype):
    emulator = emulated("pixel_shuffle")
    for seed in range(first, first + 5):
        torch.manual_seed(seed)
        emulator.seed = seed
        compare(emulator, dtype=dtype, **draw(seed))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape,r",
    [
        ((1, 1, 1, 1), 8),
        ((2, 1, 9, 31), 4),  # vectors of several sub-pixels
        ((1, 3, 7, 50), 2),  # vectors end between channels
        ((3, 8, 5, 700), 2),  # several tiles a row
        ((1, 520, 2, 3), 3),  # slices of channels, the last shorter
        ((1, 4100, 1, 2), 1),
        ((1, 33, 2, 2), 8),  # slices of vectors of one element
    ],
)
@pytest.mark.sanitized
def test_edges_of_tiles_and_slices(emulated, shape, r, dtype):
    compare(emulated("pixel_shuffle", seed=5), shape, r, dtype)


@pytest.mark.parametrize("dtype,pixels", [(torch.bfloat16, 128), (torch.float32, 64)], ids=str)
def test_blocks_sum_several_tiles(emulated, dtype, pixels):
    """The number of tiles exceeds the number of blocks, so that tiles are loaded ahead and sums of a block go on."""
    emulator = emulated("pixel_shuffle", seed=2)
    compare(emulator, (1, 8, 3, 100 * pixels + 5), 2, dtype)
    (launch,) = [launch for launch in emulator.launches if launch.name == "pixel_unshuffle_kernel"]
    assert launch.grid[:2] == (256, 1)


@pytest.mark.sanitized
def test_parts_depend_on_the_shape_alone(emulated):
    """A misaligned gradient is read in other vectors, but its sums have the same bits."""
    emulator = emulated("pixel_shuffle")
    grad_y, y = torch.randn(2, 16, 24, 40), torch.randn(2, 16, 24, 40)
    first = run(emulator, grad_y, y, 2, 0.1, (True, True))
    emulator.seed = 9
    second = run(emulator, grad_y, y, 2, 0.1, (True, True), misaligned=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("special", [NAN, float("inf"), -float("inf")])
def test_special_values_stay_in_their_places(emulated, special):
    grad_y, y = torch.ones(1, 8, 6, 6), torch.ones(1, 8, 6, 6)
    grad_y[0, 3, 4, 5] = special
    grad_x, sums = run(emulated("pixel_shuffle"), grad_y, y, 2, 0.1, (True, True))
    torch.testing.assert_close(grad_x, F.pixel_unshuffle(grad_y, 2), equal_nan=True)
    torch.testing.assert_close(sums, F.pixel_unshuffle(grad_y, 2).sum((0, 2, 3)), equal_nan=True)
