# SPDX-License-Identifier: Apache-2.0
"""conv3x3 with what follows it: as one Triton kernel, as cuDNN and one pass behind it, eager torch; and 1x1.

Evidence for the rule "auto" takes on a GPU (fastds/ops/impl/conv3x3/implicit.py): the channels from which cuDNN is
faster in spite of its passes."""

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import fastds
from bench.gpu_rows import Problem, Row, exact
from fastds.nn.convolutions import convolve

BRAIN, HALF, FULL = torch.bfloat16, torch.float16, torch.float32
OWN, OTHERS = 3e-2, 0.1  # tolerances in 16 bits
# Tiles to try beside those of kernels/implicit_gemm.py, named in the row: pixels, outputs, slab, warps, stages.
TILES = [
    (128, 64, 64, 4, 2), (128, 64, 64, 4, 4), (128, 64, 32, 4, 4), (256, 64, 64, 8, 3), (64, 64, 64, 4, 4),
    (128, 64, 64, 8, 3),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A convolution with bias: maps (B, C1 [+ C2], H, H) -> O, kernel size k, then residual, leaky ReLU, shuffle r."""

    name: str
    batch: int
    inputs: tuple[int, ...]
    outputs: int
    size: int
    k: int = 3
    residual: bool = False
    r: int = 1

    def tensors(self):
        """x, weight, bias, then x2 and residual where there are."""
        total = sum(self.inputs)
        maps = [exact(self.batch, n, self.size, self.size, seed=i) for i, n in enumerate(self.inputs)]
        weight = exact(self.outputs, total, self.k, self.k, seed=4, scale=(self.k**2 * total) ** -0.5)
        after = [exact(self.batch, self.outputs, self.size, self.size, seed=6)] if self.residual else []
        return [maps[0], weight, exact(self.outputs, seed=5), *maps[1:], *after]

    def sources(self, x, weight, bias, *rest):
        """The tensors by the names of convolve's options."""
        names = ["x2"] * (len(self.inputs) - 1) + ["residual"] * self.residual
        return x, weight, bias, dict(zip(names, rest, strict=True))

    def ours(self, algorithm, *tensors):
        x, weight, bias, rest = self.sources(*tensors)
        with fastds.convolution(algorithm):
            return convolve(x, weight, bias, act="leaky_relu", shuffle=self.r, **rest)

    def composition(self, *tensors):
        x, weight, bias, rest = self.sources(*tensors)
        x = torch.cat([x, rest["x2"]], 1) if "x2" in rest else x
        y = F.conv2d(x, weight, bias, padding=self.k // 2)
        return F.pixel_shuffle(F.leaky_relu(y + rest["residual"] if "residual" in rest else y, 0.1), self.r)

    def with_tiles(self, tiles, *tensors):
        from fastds.kernels.implicit_gemm import Tiles, launch

        x, weight, bias, rest = self.sources(*tensors)
        out = torch.empty_like(rest["residual"])
        launch(x, None, weight, bias, rest["residual"], out, slope=0.1, tiles=Tiles(*tiles))
        return out

    def problem(self, peers):
        pixels, total = self.batch * self.size**2, sum(self.inputs)
        elements = pixels * (total + (2 if self.residual else 1) * self.outputs)
        return Problem(
            "conv3x3", self.name, self.tensors, self.composition, peers, 2 * self.k**2 * total * self.outputs * pixels,
            (elements, 0), modes=("forward",),
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


def rows(small: bool) -> list[Row]:
    """Of each case the kernel, cuDNN with a pass behind it, and torch, the most telling first."""
    if small:
        case = Case("tiny", 1, (3, 2), 8, 6, residual=True, r=2)
        peers = [("fastds", functools.partial(case.ours, "auto")), ("torch eager", case.composition)]
        return case.problem(peers).rows([(FULL, 1e-4, 1e-4)])
    found = [row for case in CASES for row in of_case(case).rows([(BRAIN, OWN, OTHERS)])]
    tried = [(f"fastds {t}", functools.partial(FIRST.with_tiles, t)) for t in TILES]
    tiles = replace(FIRST.problem(tried), op="conv3x3 tiles").rows([(BRAIN, OWN, OTHERS)])
    return [*found[:6], *tiles, *found[6:], *of_case(FIRST).rows([(HALF, OWN, OTHERS)])]


def of_case(case: Case) -> Problem:
    ours = [(f"fastds {name}", functools.partial(case.ours, name)) for name in ("auto", "implicit_gemm", "direct")]
    return case.problem([*ours, ("torch eager", case.composition)])
