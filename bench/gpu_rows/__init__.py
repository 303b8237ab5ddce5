# SPDX-License-Identifier: Apache-2.0
"""What bench.gpu_bench times: one module per op or model, each with rows(small) -> list of Row."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastds


@dataclass(frozen=True)
class Row:
    """One line of the results.

    Args:
        op, case, mode, dtype, peer: the row's key; ours are called "fastds cuda", "fastds triton", ..., and "fastds" in
            the small rows of a CPU; everything else is a peer.
        build: device -> the callable to time; called once, on the stream that is timed.
        expected: device -> float64 results of that callable, a tensor or several; computed once per oracle key.
        oracle: key of `expected`; rows with equal keys share it.
        tolerance: largest error allowed, relative to the largest expected value of each tensor.
        flops, bytes: work and least memory traffic of one call.
        yardstick: it does other work (a plain convolution) and is no peer.
        graph: time replays of a captured graph, the GPU's time alone; False: launches count too, as in eager use.
    """

    op: str
    case: str
    mode: str
    dtype: str
    peer: str
    build: Callable
    expected: Callable
    oracle: tuple
    tolerance: float
    flops: float
    bytes: float
    yardstick: bool = False
    graph: bool = True


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Problem:
    """One case of an op that is a function of tensors; rows(problem) makes the rows of all its peers.

    Args:
        op, case: of the rows.
        inputs: () -> CPU tensors, the same at every call and exact in bfloat16.
        oracle: the op in plain torch, run in float64.
        peers: (name, function) each; "fastds ..." are ours, and "fastds cuda" or "fastds triton" forces that backend.
        flops: of the forward pass; the backward pass counts `backward` times as many.
        elements: of the tensors' dtype that the forward and the backward pass must read or write.
        wide: positions of inputs that stay float32 beside 16-bit ones, as cell states do.
    """

    op: str
    case: str
    inputs: Callable
    oracle: Callable
    peers: list
    flops: float
    elements: tuple[float, float]
    backward: float = 2
    wide: tuple[int, ...] = ()
    modes: tuple[str, ...] = ("forward", "backward")

    def tensors(self, dtype, device):
        """Maps in channels_last."""
        least = torch.promote_types(dtype, torch.float32)
        found = [t.to(device, least if i in self.wide else dtype) for i, t in enumerate(self.inputs())]
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in found]

    def rows(self, precisions) -> list[Row]:
        """precisions: (dtype, tolerance of ours, tolerance of the peers) each."""
        return [
            Row(
                self.op, self.case, mode, name_of(dtype), name,
                build=functools.partial(self._build, name, function, mode, dtype),
                expected=functools.partial(self._build_and_run, mode), oracle=(self.op, self.case, mode),
                tolerance=own if name.startswith("fastds") else others,
                flops=self.flops * (1 if mode == "forward" else self.backward),
                bytes=self.elements[mode != "forward"] * dtype.itemsize,
            )
            for dtype, own, others in precisions for mode in self.modes for name, function in self.peers
        ]  # fmt: skip

    def _build(self, name, function, mode, dtype, device):
        with forced(name):
            run = value_or_gradients(function, self.tensors(dtype, device), mode)

        def timed():
            with forced(name):
                return run()

        return timed

    def _build_and_run(self, mode, device):
        return self._build("float64", self.oracle, mode, torch.float64, device)()


def forced(name):
    """The backend that a row of ours names; nothing for others."""
    backend = {"fastds cuda": "native", "fastds triton": "triton"}.get(name)
    return contextlib.nullcontext() if backend is None else fastds.backend(backend)


def value_or_gradients(function, tensors, mode):
    """The callable to time: the value of function(*tensors), or the gradients of all tensors with the graph kept."""
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    along = [torch.empty_like(y).copy_((torch.arange(y.numel()) % 7 - 3).view(y.shape)) for y in results]
    return lambda: torch.autograd.grad(results, leaves, along, retain_graph=True)


def exact(*shape, seed: int, scale: float = 1.0):
    """Normal values that bfloat16 holds exactly."""
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16().float()


def compiled(function):
    """torch.compile at the first call: a row that is left out compiles nothing."""
    make = functools.cache(lambda: torch.compile(lambda *tensors: function(*tensors)))
    return lambda *tensors: make()(*tensors)
