# SPDX-License-Identifier: Apache-2.0
"""Convolutions drawn by seed for the kernel with a window, csrc/conv3x3/cuda_window.cuh."""

import random
from dataclasses import dataclass

import torch
from gpuless.emu import Emulator
from torch import Tensor

from fastds.ops import conv3x3
from fastds.ops.core import native
from fastds.ops.impl.conv3x3 import cuda_window, reference

KERNEL = "conv3x3_window_kernel"
DTYPES = (torch.bfloat16, torch.float16)
TOLERANCES = {torch.bfloat16: 8e-3, torch.float16: 1e-3}  # one rounding of the result


def make_map(case, channels: int, dtype: torch.dtype) -> Tensor:
    """Return a map of random values of the size of a case; if case.sliced, channels of a larger tensor of NaN."""
    extra = 16 if case.sliced else 0
    t = torch.full((case.batch, channels + extra, case.height, case.width), torch.nan, dtype=dtype)
    t = t.contiguous(memory_format=torch.channels_last)[:, extra // 2 : extra // 2 + channels]
    return t.copy_(torch.randn(t.shape))


@dataclass(frozen=True)
class Case:
    """A call of conv3x3 by the kernel.

    Attributes:
        batch: images.
        inputs: channels of the one or two sources.
        outputs: output channels before the shuffle.
        height, width: size of the sources.
        dtype: dtype of the maps.
        padding_mode, activation, shuffle: options of conv3x3.
        bias: dtype of the bias and the weight, or None for a weight in the dtype of the maps and no bias.
        residual: whether a residual is added.
        sliced: whether the maps are channels of larger tensors, whose other channels are NaN.
    """

    batch: int
    inputs: tuple[int, ...]
    outputs: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    padding_mode: str = "zeros"
    activation: str | None = None
    shuffle: int = 1
    bias: torch.dtype | None = None
    residual: bool = False
    sliced: bool = False

    def make_tensors(self) -> list[Tensor | None]:
        """Return x, weight, bias, x2 and residual, which depend on torch's seed."""
        x, *rest = (make_map(self, n, self.dtype) for n in self.inputs)
        scale = (9 * sum(self.inputs)) ** -0.5
        weight = (torch.randn(self.outputs, sum(self.inputs), 3, 3) * scale).to(self.bias or self.dtype)
        bias = None if self.bias is None else torch.randn(self.outputs).to(self.bias)
        residual = make_map(self, self.outputs, self.dtype) if self.residual else None
        return [x, weight, bias, rest[0] if rest else None, residual]

    def compute(self, tensors, algorithm: str = "window") -> Tensor:
        x, weight, bias, x2, residual = tensors
        return conv3x3(
            x, weight, bias, second_input=x2, residual=residual, activation=self.activation, negative_slope=0.2,
            padding_mode=self.padding_mode, upscale_factor=self.shuffle, algorithm=algorithm,
        )  # fmt: skip

    def compute_exactly(self, tensors) -> Tensor:
        """Return the result of the reference in float64, from the weight as the kernel reads it."""
        x, weight, bias, x2, residual = (None if t is None else t.double() for t in tensors)
        weight = tensors[1].to(self.dtype).double()
        return reference.conv3x3(
            x, weight, bias, x2, residual, self.activation or "none", 0.2, self.padding_mode, self.shuffle,
            torch.float64, "auto",
        )  # fmt: skip

    def measure_error(self, tensors, result: Tensor) -> float:
        """Return the largest error over the tolerance of its element; NaN counts as infinite."""
        exact = self.compute_exactly(tensors)
        bound = TOLERANCES[self.dtype] * (0.1 + exact.abs())
        return ((result.double() - exact).abs() / bound).nan_to_num(nan=float("inf")).max().item()


GUARD_ELEMENTS, GUARD_VALUE = 1 << 14, 3.0


def make_poisoned_allocator(buffers: list[Tensor]):
    """Return a function like layout.empty_map, whose maps are NaN between guards; it appends their memory to a list."""

    def empty_map(shape, dtype, like):
        batch, channels, height, width = shape
        size = batch * channels * height * width
        buffers.append(torch.full((size + 2 * GUARD_ELEMENTS,), GUARD_VALUE, dtype=dtype))
        result = buffers[-1][GUARD_ELEMENTS : GUARD_ELEMENTS + size].fill_(torch.nan)
        return result.view(batch, height, width, channels).permute(0, 3, 1, 2)

    return empty_map


def poison_outputs(monkeypatch) -> list[Tensor]:
    """Make results NaN between guards before the kernel runs; return the list of their memory."""
    buffers: list[Tensor] = []
    monkeypatch.setattr(cuda_window, "empty_map", make_poisoned_allocator(buffers))
    return buffers


def is_untouched(buffers: list[Tensor]) -> bool:
    """Return whether there are poisoned outputs and nothing was written outside of them."""
    guards = [t for b in buffers for t in (b[:GUARD_ELEMENTS], b[-GUARD_ELEMENTS:])]
    return bool(guards) and all((t == GUARD_VALUE).all() for t in guards)


SEEDS = 3  # orders of threads


def finds_an_error(case, module, buffers: list[Tensor], monkeypatch) -> bool:
    """Return whether some order of threads gives a wrong result, an error or a write outside of the results.

    Args:
        case: Case of this file or of conv_rnn_window_cases.py.
        module: result of emu.build.
        buffers: memory of poisoned results.
        monkeypatch: fixture of the test.
    """
    emulator = Emulator([module])
    monkeypatch.setattr(native, "get_module", lambda: emulator)
    for emulator.seed in range(SEEDS):
        torch.manual_seed(0)
        tensors = case.make_tensors()
        try:
            if case.measure_error(tensors, case.compute(tensors)) > 1 or not is_untouched(buffers):
                return True
        except RuntimeError:
            return True
    return False


def draw_case(seed: int) -> Case:
    """Draw a case with a cost for the emulator of at most a second or two."""
    draw = random.Random(seed)
    shuffle = draw.choice([1, 1, 1, 2])
    inputs = tuple(8 * draw.randint(1, 12) for _ in range(draw.choice([1, 1, 2])))
    if sum(inputs) > 96:  # of both sources
        inputs = (inputs[0], 8 * draw.randint(1, 6))
    outputs = 8 * shuffle**2 * draw.randint(1, 12 // shuffle**2)
    largest = 19 if sum(inputs) * outputs < 2000 else 11
    return Case(
        draw.randint(1, 3) if largest == 19 else draw.randint(1, 2), inputs, outputs, draw.randint(1, largest),
        draw.choice([draw.randint(1, largest), draw.randint(16, largest + 16)]), draw.choice(DTYPES),
        draw.choice(["zeros", "zeros", "replicate", "circular_x"]), draw.choice([None, "relu", "leaky_relu"]), shuffle,
        None, draw.random() < 0.5 and shuffle == 1, draw.random() < 0.3,
    )  # fmt: skip
