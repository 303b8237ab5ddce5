# SPDX-License-Identifier: Apache-2.0
"""Rows of bench.gpu_bench: one module per op or network, each with make_rows(small), which returns Rows."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves

import fastds
from fastds.models import graph


@dataclass(frozen=True)
class Row:
    """One benchmark of one implementation.

    Args:
        op, case, mode, dtype, peer: key of the row. Rows of fastds have the peer "fastds cuda", "fastds triton" and so
            on, or "fastds" in the small rows of a CPU.
        build: function of the device that returns the callable to time; called once, on the stream that is timed.
        expected: function of the device that returns the float64 result of that callable, a tensor or several.
        reference_key: rows with equal keys share one call of `expected`.
        tolerance: largest error allowed, relative to the largest expected value of each tensor.
        flops: floating-point operations of one call.
        bytes: least memory traffic of one call.
        yardstick: True if the row does other work, for example a plain convolution, and is not a peer.
        timing: what is timed. "graph": replays of a CUDA graph, which leaves out the CPU. "eager": eager calls with the
            CPU. "default stream": eager calls on the default stream, for which the CPU is ahead, of code that starts
            kernels there whatever torch's current stream is. "joined streams": the same from another stream, which
            events order with the default stream.
        buffers: function of the built callable that returns tensors to fill with NaN before the compared call, besides
            its results: the output of a CUDA graph of its own.
        first: whether the row is in the part "first" of bench/gpu_suite.sh.
    """

    op: str
    case: str
    mode: str
    dtype: str
    peer: str
    build: Callable
    expected: Callable
    reference_key: tuple
    tolerance: float
    flops: float
    bytes: float
    yardstick: bool = False
    timing: str = "graph"
    buffers: Callable | None = None
    first: bool = False


def get_dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Problem:
    """One case of an op that is a function of tensors, for several implementations.

    Args:
        op, case: op and case of the rows.
        inputs: function that returns the CPU tensors, the same at every call and exact in bfloat16.
        reference: the op in PyTorch, run in float64.
        peers: pairs (name, function). The names "fastds cuda" and "fastds triton" select that backend, and "fastds
            window" the algorithm of the convolutions.
        flops: floating-point operations of the forward pass; the backward pass counts `backward` times as many.
        elements: numbers that the forward and the backward pass have to read or write.
        backward: see flops.
        float32_inputs: positions of inputs that stay float32 next to 16-bit ones, as the states of cells do.
        modes: "forward" and "backward", or one of both.
        first: see Row.
    """

    op: str
    case: str
    inputs: Callable
    reference: Callable
    peers: list
    flops: float
    elements: tuple[float, float]
    backward: float = 2
    float32_inputs: tuple[int, ...] = ()
    modes: tuple[str, ...] = ("forward", "backward")
    first: bool = False

    def make_tensors(self, dtype, device):
        """Return the inputs on a device, tensors of four dimensions in channels_last."""
        wide = torch.promote_types(dtype, torch.float32)
        tensors = [t.to(device, wide if i in self.float32_inputs else dtype) for i, t in enumerate(self.inputs())]
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]

    def make_rows(self, precisions) -> list[Row]:
        """Return the rows of all implementations.

        Args:
            precisions: triples (dtype, tolerance of fastds, tolerance of the peers).
        """
        return [
            Row(
                self.op, self.case, mode, get_dtype_name(dtype), name,
                build=functools.partial(self._build, name, function, mode, dtype),
                expected=functools.partial(self._compute_expected, mode), reference_key=(self.op, self.case, mode),
                tolerance=own_tolerance if name.startswith("fastds") else peer_tolerance,
                flops=self.flops * (1 if mode == "forward" else self.backward),
                bytes=self.elements[mode != "forward"] * dtype.itemsize, first=self.first,
            )
            for dtype, own_tolerance, peer_tolerance in precisions
            for mode in self.modes for name, function in self.peers
        ]  # fmt: skip

    def _build(self, name, function, mode, dtype, device):
        with select_backend(name):
            run = make_value_or_gradients(function, self.make_tensors(dtype, device), mode)

        def timed():
            with select_backend(name):
                return run()

        return timed

    def _compute_expected(self, mode, device):
        return self._build("float64", self.reference, mode, torch.float64, device)()


class MissingPeerError(RuntimeError):
    """Error for a row whose library is not installed."""


def load_torchvision_op() -> Callable:
    """Return torchvision.ops.deform_conv2d.

    Its kernels start on the default stream of CUDA, whatever torch's current stream is (torchvision 0.26 to 0.28), so
    that a CUDA graph does not contain them. A row that calls it has the timing "default stream" or "joined streams".

    Raises:
        MissingPeerError: torchvision is not installed, or it was built for another torch.
    """
    try:
        from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingPeerError(f"torchvision cannot be imported: {error}") from error
    return deform_conv2d


def capture_network(model, *inputs, dtype):
    """Capture the forward pass of a network as fastds.compile_graph does.

    Args:
        model: network of fastds.
        inputs: arguments of its forward pass.
        dtype: dtype of the arithmetic.

    Returns:
        The callable to time, with the attribute `buffers`: the tensors that a replay writes.
    """
    arguments = graph.Arguments(*graph.resolve_arguments(model, inputs, {}), inputs[0].device)
    if inputs[0].is_meta:  # see bench/gpu_driver.py
        frozen, captured = graph.freeze_model(model, torch.float32), None  # autocast knows no meta tensors
    else:
        graph.check_graph_device(model, dtype)
        captured = graph.capture(model, arguments, dtype)

    def run():
        args, kwargs = graph.resolve_arguments(model, inputs, {})
        if captured is None:
            with torch.no_grad(), graph.capture_mode(dtype):
                return frozen(*args, **kwargs)
        return captured(*arguments.extract_tensors(args, kwargs))

    run.buffers = [t for t in tree_leaves(getattr(captured, "output", ())) if isinstance(t, torch.Tensor)]
    return run


def select_backend(name):
    """Return a context manager that selects the backend or the algorithm of convolutions named by a peer."""
    if name == "fastds window":
        return fastds.use_conv_algorithm("window")
    backend = {"fastds cuda": "native", "fastds triton": "triton"}.get(name)
    return contextlib.nullcontext() if backend is None else fastds.use_backend(backend)


def make_value_or_gradients(function, tensors, mode):
    """Return the callable to time.

    Args:
        function: function of the tensors that returns one or several tensors.
        tensors: its arguments.
        mode: "forward" for the value, "backward" for the gradients of all tensors, with the graph retained.
    """
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    grads = [
        torch.empty_like(y).copy_((torch.arange(y.numel(), device=y.device) % 7 - 3).view(y.shape)) for y in results
    ]
    return lambda: torch.autograd.grad(results, leaves, grads, retain_graph=True)


def draw_exact(*shape, seed: int, scale: float = 1.0):
    """Draw normal values that bfloat16 represents exactly, as float32."""
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16().float()


def compile_lazily(function):
    """Return a function that is compiled by torch.compile at its first call, so that skipped rows compile nothing."""
    make = functools.cache(lambda: torch.compile(lambda *tensors: function(*tensors)))
    return lambda *tensors: make()(*tensors)
