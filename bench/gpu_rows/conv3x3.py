# SPDX-License-Identifier: Apache-2.0
"""Convolutions with their epilogue: kernels of Triton and CUDA C++, cuDNN with an epilogue kernel, and eager torch.

The rows measure the rule by which "auto" selects an algorithm on a GPU, that is from how many channels cuDNN is faster
in spite of the separate epilogue: see fastds/ops/impl/conv3x3/triton_implicit_gemm.py.
"""

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import fastds
from bench.gpu_rows import Problem, Row, draw_exact
from fastds.nn.convolutions import convolve

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCES = 3e-2, 0.1  # of fastds and of peers, in 16 bits
# Tile sizes to compare with those of kernels/implicit_gemm.py: arguments of fastds.kernels.device.Tiles.
TILES = [
    (128, 64, 64, 4, 2), (128, 64, 64, 4, 4), (128, 64, 32, 4, 4), (256, 64, 64, 8, 3), (64, 64, 64, 4, 4),
    (128, 64, 64, 8, 3),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A convolution with bias and epilogue: residual, leaky ReLU, pixel shuffle.

    Args:
        name: case of the rows.
        batch: images.
        inputs: channels of the one or two inputs.
        outputs: output channels before the shuffle.
        size: height and width of the inputs.
        k: kernel size, 1 or 3.
        residual: whether a residual is added.
        r: factor of the shuffle, 1 for none.
    """

    name: str
    batch: int
    inputs: tuple[int, ...]
    outputs: int
    size: int
    k: int = 3
    residual: bool = False
    r: int = 1

    def make_tensors(self):
        """Return x, weight, bias, and x2 and the residual if the case has them."""
        total = sum(self.inputs)
        images = [draw_exact(self.batch, n, self.size, self.size, seed=i) for i, n in enumerate(self.inputs)]
        weight = draw_exact(self.outputs, total, self.k, self.k, seed=4, scale=(self.k**2 * total) ** -0.5)
        residual = [draw_exact(self.batch, self.outputs, self.size, self.size, seed=6)] if self.residual else []
        return [images[0], weight, draw_exact(self.outputs, seed=5), *images[1:], *residual]

    def split_tensors(self, x, weight, bias, *rest):
        """Return x, weight, bias and a dict of the optional arguments of convolve()."""
        names = ["second_input"] * (len(self.inputs) - 1) + ["residual"] * self.residual
        return x, weight, bias, dict(zip(names, rest, strict=True))

    def compute(self, algorithm, *tensors):
        x, weight, bias, rest = self.split_tensors(*tensors)
        with fastds.use_conv_algorithm(algorithm):
            return convolve(x, weight, bias, activation="leaky_relu", upscale_factor=self.r, **rest)

    def compute_in_torch(self, *tensors):
        x, weight, bias, rest = self.split_tensors(*tensors)
        x = torch.cat([x, rest["second_input"]], 1) if "second_input" in rest else x
        y = F.conv2d(x, weight, bias, padding=self.k // 2)
        return F.pixel_shuffle(F.leaky_relu(y + rest["residual"] if "residual" in rest else y, 0.1), self.r)

    def run_with_tiles(self, tiles, *tensors):
        from fastds.kernels.implicit_gemm import Tiles, launch

        x, weight, bias, rest = self.split_tensors(*tensors)
        out = torch.empty_like(rest["residual"])
        launch(x, None, weight, bias, rest["residual"], out, slope=0.1, tiles=Tiles(*tiles))
        return out

    def make_problem(self, peers):
        pixels, total = self.batch * self.size**2, sum(self.inputs)
        elements = pixels * (total + (2 if self.residual else 1) * self.outputs)
        return Problem(
            "conv3x3", self.name, self.make_tensors, self.compute_in_torch, peers,
            2 * self.k**2 * total * self.outputs * pixels, (elements, 0), modes=("forward",),
        )  # fmt: skip


FIRST = Case("64 -> 64, 200x200, residual", 1, (64,), 64, 200, residual=True)
CASES = [
    FIRST,
    Case("64 + 64 -> 64, 200x200", 1, (64, 64), 64, 200),
    Case("64 -> 216, 200x200", 1, (64,), 216, 200),
    Case("64 -> 256, 200x200, shuffle 2", 1, (64,), 256, 200, r=2),
    Case("64 -> 64, 50x50", 2, (64,), 64, 50),
    Case("96 -> 96, 160x160", 4, (96,), 96, 160),
    Case("128 -> 128, 100x100", 4, (128,), 128, 100),
    Case("64 + 64 -> 64, 200x200, 1x1", 1, (64, 64), 64, 200, k=1),
    Case("64 -> 1, 800x800", 1, (64,), 1, 800),
]


def make_rows(small: bool) -> list[Row]:
    """Return the rows of all cases, the most important first."""
    if small:
        case = Case("tiny", 1, (3, 2), 8, 6, residual=True, r=2)
        peers = [("fastds", functools.partial(case.compute, "auto")), ("torch eager", case.compute_in_torch)]
        return replace(case.make_problem(peers), first=True).make_rows([(FLOAT32, 1e-4, 1e-4)])
    rows = [
        row
        for case in CASES
        for row in replace(make_case_problem(case), first=case is FIRST).make_rows([(BFLOAT16, *TOLERANCES)])
    ]
    tried = [(f"fastds {t}", functools.partial(FIRST.run_with_tiles, t)) for t in TILES]
    tiles = replace(FIRST.make_problem(tried), op="conv3x3 tiles").make_rows([(BFLOAT16, *TOLERANCES)])
    return [*rows[:7], *tiles, *rows[7:], *make_case_problem(FIRST).make_rows([(FLOAT16, *TOLERANCES)])]


def make_case_problem(case: Case) -> Problem:
    algorithms = ("auto", "implicit_gemm", "direct")
    if case.k == 3 and case.outputs % 8 == 0:
        algorithms = ("window", *algorithms)
    ours = [(f"fastds {name}", functools.partial(case.compute, name)) for name in algorithms]
    return case.make_problem([*ours, ("torch eager", case.compute_in_torch)])
