# SPDX-License-Identifier: Apache-2.0
"""Test problems for conv3x3, and float64 results by torch."""

import random
from dataclasses import dataclass, field

import torch

from fastds.ops import conv3x3
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference


@dataclass(frozen=True)
class Problem:
    B: int = 2
    C1: int = 20
    C2: int = 5
    O: int = 24  # noqa: E741
    H: int = 9
    W: int = 7
    act: str | None = None
    padding_mode: str = "zeros"
    shuffle: int = 1
    bias: bool = True
    residual: bool = True
    dtype: torch.dtype = torch.float32
    out_dtype: torch.dtype | None = None
    seed: int = field(default=0, compare=False)

    def __str__(self):
        extras = [str(self.act), self.padding_mode, f"r{self.shuffle}", str(self.dtype)[6:], *["bias"] * self.bias]
        return "-".join([f"{self.B}x{self.C1}+{self.C2}to{self.O}x{self.H}x{self.W}", *extras])

    def tensors(self, dtype=None, layout=torch.channels_last):
        """Make x, weight, bias, x2, residual: images of unit variance, and weights that preserve the variance."""
        generator = torch.Generator().manual_seed(self.seed)

        def image(channels, dtype):
            x = torch.randn(self.B, channels, self.H, self.W, generator=generator).to(dtype)
            return x.contiguous(memory_format=layout)

        channels = self.C1 + self.C2
        weight = torch.randn(self.O, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
        bias = torch.randn(self.O, generator=generator)
        x, x2 = image(self.C1, dtype or self.dtype), image(self.C2, dtype or self.dtype) if self.C2 else None
        residual = image(self.O, dtype or self.out_dtype or self.dtype)
        weight, bias = (t.to(dtype) if dtype else t for t in (weight, bias))
        return [x, weight, bias if self.bias else None, x2, residual if self.residual else None]

    def run(self, tensors, algorithm="winograd"):
        x, weight, bias, x2, residual = tensors
        return conv3x3(
            x, weight, bias, second_input=x2, residual=residual, activation=self.act, padding_mode=self.padding_mode,
            upscale_factor=self.shuffle, out_dtype=self.out_dtype, algorithm=algorithm,
        )  # fmt: skip

    def expected(self, tensors):
        """Compute the result in float64 from the same (already rounded) inputs."""
        return reference(*(t if t is None else t.double() for t in tensors), self.act or "none", 0.1,
                         self.padding_mode, self.shuffle)  # fmt: skip


def sampled(count: int, seed: int) -> list[Problem]:
    """Make problems with random numbers of channels, sizes and epilogues."""
    choose = random.Random(seed)
    problems = []
    while len(problems) < count:
        shuffle = choose.choice([1, 1, 1, 2, 3, 4])
        outputs = choose.choice([choose.randint(1, 24), choose.randint(1, 256)])
        outputs = max(1, outputs // shuffle**2) * shuffle**2
        dtype = choose.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
        inputs = choose.choice([choose.randint(1, 24), choose.randint(1, 256)])
        problem = Problem(
            B=choose.choice([1, 1, 2, 3]), C1=inputs, C2=choose.choice([0, 0, choose.randint(1, 40)]), O=outputs,
            H=choose.choice([choose.randint(1, 9), choose.randint(1, 70)]),
            W=choose.choice([choose.randint(1, 9), choose.randint(1, 70)]),
            act=choose.choice([None, "relu", "leaky_relu"]),
            padding_mode=choose.choice(["zeros", "zeros", "replicate", "circular_x"]), shuffle=shuffle,
            bias=choose.random() < 0.7, residual=choose.random() < 0.4, dtype=dtype,
            out_dtype=choose.choice([None, torch.float32]), seed=len(problems),
        )  # fmt: skip
        if problem.B * problem.H * problem.W * (problem.C1 + problem.C2) * problem.O <= 20e6:
            problems.append(problem)
    return problems


def leaves(problem, dtype=None):
    return [t if t is None else t.detach().requires_grad_() for t in problem.tensors(dtype)]


def gradients(y, tensors, grad_y, **options):
    """Return the gradients of the tensors that are not None."""
    return torch.autograd.grad(y, [t for t in tensors if t is not None], grad_y, **options)


def relative_error(got, expected):
    """Return the largest difference in units of the standard deviation of the expected values."""
    return ((got.double() - expected).abs().max() / expected.std().clamp_min(1e-30)).item()


# Tolerance relative to the size of the result: the error of the engine in float32, and the rounding of 16-bit results.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def check_values(problem, y, expected):
    assert y.shape == expected.shape and y.dtype == (problem.out_dtype or problem.dtype)
    assert y.is_contiguous(memory_format=torch.channels_last)
    bound = 2e-5 + (0 if y.dtype == torch.float32 else TOLERANCE[y.dtype] * expected.abs())
    excess = (y.double() - expected).abs() / bound
    assert excess.max() <= 1, f"{problem}: {excess.max():.2f} times the bound"
