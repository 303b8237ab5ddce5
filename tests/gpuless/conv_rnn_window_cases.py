# SPDX-License-Identifier: Apache-2.0
"""Steps of recurrent cells drawn by seed for the kernel with a window, csrc/conv_rnn/cuda_window.cuh."""

import random
from dataclasses import dataclass

import torch
from gpuless.conv3x3_window_cases import TOLERANCES, make_map, make_poisoned_allocator
from torch import Tensor

from fastds.ops.impl.conv3x3 import reference
from fastds.ops.impl.conv_rnn import fused
from fastds.ops.impl.conv_rnn.fused import ConvPointwiseOps
from fastds.ops.impl.conv_rnn.gru_step import RESET, UPDATE
from fastds.ops.impl.conv_rnn.op import LSTM, MEMORY, OUTPUT, ST_LSTM

KERNEL = "conv_gates_window_kernel"
DTYPES = (torch.bfloat16, torch.float16)
ALL_TOLERANCES = TOLERANCES | {torch.float32: 5e-5}  # of a state in float32
# The op and its options, by the formula of csrc/gates.
FORMULAS: dict[str, tuple[ConvPointwiseOps, tuple]] = {
    "lstm_gates": (LSTM, ()),
    "st_lstm_gates": (ST_LSTM, ()),
    "memory_gates": (MEMORY, ("none",)),
    "memory_gates_tanh": (MEMORY, ("tanh",)),
    "output_gate": (OUTPUT, ("sigmoid",)),
    "output_gate_tanh": (OUTPUT, ("tanh",)),
    "gru_reset": (RESET, ()),
    "gru_update": (UPDATE, ("z", "tanh", 0.2)),
    "gru_update_leaky": (UPDATE, ("1-z", "leaky_relu", 0.3)),
}


@dataclass(frozen=True)
class Case:
    """A step by the kernel.

    Attributes:
        formula: a key of FORMULAS.
        batch: images.
        inputs: channels of the one or two sources; those of the second one of an LSTM are the channels of its state.
        channels: channels of the state.
        height, width: size of the maps.
        dtype: dtype of the maps.
        state: dtype of the other inputs where the formula takes float32, otherwise they have the dtype of the maps.
        bias: dtype of the bias and the weight, or None for a weight in the dtype of the maps and no bias.
        residual: whether a residual is added.
        keep: whether the pre-activations are stored.
        sliced: whether the maps are channels of larger tensors, whose other channels are NaN.
    """

    formula: str
    batch: int
    inputs: tuple[int, ...]
    channels: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    state: torch.dtype = torch.float32
    bias: torch.dtype | None = torch.float32
    residual: bool = False
    keep: bool = False
    sliced: bool = False

    @property
    def ops(self) -> ConvPointwiseOps:
        return FORMULAS[self.formula][0]

    @property
    def options(self) -> tuple:
        return FORMULAS[self.formula][1]

    def make_tensors(self) -> list[Tensor | None]:
        """Return x, x2, weight, bias, residual and the other inputs, which depend on torch's seed."""
        outputs = self.ops.gates * self.channels
        x, *rest = (make_map(self, n, self.dtype) for n in self.inputs)
        scale = (9 * sum(self.inputs)) ** -0.5
        weight = (torch.randn(outputs, sum(self.inputs), 3, 3) * scale).to(self.bias or self.dtype)
        bias = None if self.bias is None else torch.randn(outputs).to(self.bias)
        residual = make_map(self, outputs, self.dtype) if self.residual else None
        states = [self.state if spec.allows_float32 else self.dtype for spec in self.ops.others]
        return [
            x,
            rest[0] if rest else None,
            weight,
            bias,
            residual,
            *(make_map(self, self.channels, s) for s in states),
        ]

    def compute(self, tensors, algorithm: str = "window") -> tuple[Tensor, ...]:
        """Return the results and the pre-activations."""
        return self.ops.op(*tensors, *self.options, algorithm, self.keep)

    def compute_exactly(self, tensors) -> list[Tensor]:
        """Return the same in float64, from the weight as the kernel reads it."""
        x, x2, weight, bias, residual, *others = (None if t is None else t.double() for t in tensors)
        weight = tensors[2].to(self.dtype).double()
        pre = reference.conv3x3(x, weight, bias, x2, residual, "none", 0.0, "zeros", 1, torch.float64, "auto")
        position = self.ops.position
        results = self.ops.spec.reference(*others[:position], pre, *others[position:], *self.options)
        return [*([results] if isinstance(results, Tensor) else results), *([pre] if self.keep else [])]

    def measure_error(self, tensors, results) -> float:
        """Return the largest error over the tolerance of its element; NaN counts as infinite."""
        errors = [0.0]
        for result, exact in zip(results, self.compute_exactly(tensors), strict=False):
            bound = ALL_TOLERANCES[result.dtype] * (0.1 + exact.abs())
            errors.append(((result.double() - exact).abs() / bound).nan_to_num(nan=float("inf")).max().item())
        return max(errors)


def poison_results(monkeypatch) -> list[Tensor]:
    """Make results NaN between guards before the kernel runs; return the list of their memory."""
    buffers: list[Tensor] = []
    empty_map = make_poisoned_allocator(buffers)
    monkeypatch.setattr(
        fused.buffer_pool, "allocate_maps", lambda shape, dtypes, like: [empty_map(shape, d, like) for d in dtypes]
    )
    monkeypatch.setattr(fused, "empty_map", empty_map)  # of the pre-activations
    return buffers


def draw_case(seed: int) -> Case:
    """Draw a case with a cost for the emulator of at most a second or two."""
    draw = random.Random(seed)
    formula = list(FORMULAS)[seed % len(FORMULAS)]
    gates = FORMULAS[formula][0].gates
    channels = 8 * draw.randint(1, 8 // max(gates - 1, 1))
    inputs = [8 * draw.randint(1, 10)]
    if draw.random() < 0.7:
        inputs += [channels if formula == "lstm_gates" else 8 * draw.randint(1, 4)]
    largest = 19 if sum(inputs) * gates * channels < 2000 else 9
    dtype = draw.choice(DTYPES)
    return Case(
        formula, draw.randint(1, 2), tuple(inputs), channels, draw.randint(1, largest),
        draw.choice([draw.randint(1, largest), draw.randint(16, largest + 12)]), dtype,
        draw.choice([dtype, torch.float32]), draw.choice([None, dtype, torch.float32]), draw.random() < 0.4,
        draw.random() < 0.5, draw.random() < 0.3,
    )  # fmt: skip
