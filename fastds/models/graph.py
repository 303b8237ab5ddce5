# SPDX-License-Identifier: Apache-2.0
"""Capture the forward of a model for fixed shapes: as a CUDA graph, or on a CPU as a list of kernel calls.

A CUDA graph starts hundreds of small kernels with one launch. A replay on a CPU calls the kernels without the Python
code between them.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from fastds.models.cpu_graph import CPUForwardGraph, call_module
from fastds.nn.convolutions import MultiInputConv3x3

WARM_UP_RUNS = 3  # before the capture, for Triton's compilation, cuDNN's selection and the allocator
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def is_capturing() -> bool:
    """Return True if this thread runs a forward that is being captured.

    A captured forward must not read tensor values, because a read waits for the device and cannot be replayed. The
    result is always False while torch.compile traces.
    """
    return not torch.compiler.is_compiling() and _capturing.get()


@contextlib.contextmanager
def _mark_capturing() -> Iterator[None]:
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def compile_graph(
    model: nn.Module, *inputs: Any, dtype: torch.dtype | None = None, train: bool = False, **options: Any
) -> Callable[..., Any]:
    """Capture model(*inputs, **options) as one CUDA graph, or on a CPU as a list of kernel calls.

        fast = fastds.compile_graph(model, x);  y = fast(x2)

    Tensors among the arguments are examples whose values do not matter. All other arguments (steps, size, scale) are
    fixed. The captured part of the forward does not fill missing values (NaN). Inputs that the model computes on the
    CPU, such as optical flow, are computed before each replay.

    Args:
        model: any network of fastds, on a CPU or a CUDA device.
        inputs: positional arguments of `forward`, tensors on the device of the model.
        options: keyword arguments of `forward`.
        dtype: dtype of the arithmetic: torch.bfloat16, torch.float16 or torch.float32. Inputs keep their dtype. None
            stands for torch.bfloat16 on a CUDA device and torch.float32 on a CPU.
        train: False captures inference in evaluation mode with a copy of the current weights, on a CUDA device in
            `dtype`. True (CUDA only) captures the forward and the backward with the weights of the model itself, in its
            current mode.

    Returns:
        A function of the same arguments, for tensors of the same shapes and dtypes, that returns the output of
        `forward`. On a CPU with torch.float32 the output is equal to that of `forward`. Calls share the buffers of the
        graph, so only one call may run at a time.

    Raises:
        ValueError: If the model is neither on a CPU nor on a CUDA device, if an input is on another device than the
            model, if the dtype is not supported, or if `train` is set on a CPU. The returned function raises ValueError
            for a tensor of another shape or dtype and for another value of a fixed argument.
        TypeError: If the model is no torch.nn.Module.
        RuntimeError: On a CPU, if a list of calls cannot reproduce the forward, for example because the forward reads
            tensor values or draws random numbers.
    """
    device = check_graph_device(model, dtype, train)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    args, kwargs = resolve_arguments(model, inputs, options)
    arguments = Arguments(args, kwargs, device)
    graph = capture(model, arguments, dtype, train=train)

    def call(*inputs: Any, **options: Any) -> Any:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return graph(*arguments.extract_tensors(*resolve_arguments(model, inputs, options)))

    return call


def capture(
    model: nn.Module,
    arguments: "Arguments",
    dtype: torch.dtype,
    function: Callable[..., Any] = call_module,
    train: bool = False,
) -> "GradientGraph | ForwardGraph | CPUForwardGraph":
    """Capture function(model, *args, **kwargs).

    Args:
        model: network on a CPU or a CUDA device.
        arguments: arguments of the function after the model.
        dtype: dtype of the arithmetic.
        function: function or method of the model.
        train: True captures the forward and the backward, on a CUDA device.

    Raises:
        RuntimeError: If the function cannot be captured.
    """
    # In inference mode, composite operators such as aten.to reach the recorder of a CPU undecomposed.
    with torch.inference_mode(False):
        if arguments.device.type == "cpu":
            with _mark_capturing():
                return CPUForwardGraph(model, arguments, dtype, function)
        with torch.cuda.device(arguments.device), enable_cudnn_benchmark():
            return (GradientGraph if train else ForwardGraph)(model, arguments, dtype, function)


def check_graph_device(model: nn.Module, dtype: torch.dtype | None, train: bool = False) -> torch.device:
    """Return the device of the model.

    Args:
        model: network to capture.
        dtype: requested dtype of the arithmetic or None.
        train: True if gradients are to be captured.

    Raises:
        TypeError: If the model is no torch.nn.Module.
        ValueError: If the dtype is not supported, or if a graph cannot be captured on the device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be None, torch.bfloat16, torch.float16 or torch.float32, got {dtype}")
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"model must be on a CPU or a CUDA device to be captured as a graph, it is on {device}")
    if train and device.type == "cpu":
        hint = "move it with model.to('cuda')" if torch.cuda.is_available() else "torch finds no GPU here"
        raise ValueError(f"train: a step is captured on a CUDA device alone, the model is on {device}: {hint}")
    return device


def resolve_arguments(model: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of `forward` for a call of a model.

    If the model has a method `prepare_inputs`, the positional arguments are its results. They include inputs that are
    computed on the CPU, such as optical flow.

    Args:
        model: the network.
        inputs: positional arguments of the call.
        options: keyword arguments of the call.

    Returns:
        Positional and keyword arguments of `forward`.
    """
    prepare = getattr(model, "prepare_inputs", None)
    return (inputs, options) if prepare is None else (prepare(*inputs, **options), {})


class Arguments:
    """Arguments for which a graph is captured: tensors by shape and dtype, all others by value.

    Args:
        args, kwargs: arguments of the forward.
        device: device of the model.

    Raises:
        ValueError: If a tensor is on another device.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any], device: torch.device):
        self.leaves, self.spec = tree_flatten((args, kwargs))
        self.device = device
        self.tensors = [z for z in self.leaves if isinstance(z, Tensor)]
        for i, z in enumerate(self.leaves):
            if isinstance(z, Tensor) and z.device != device:
                raise ValueError(f"input {i} is on {z.device}, expected {device}, the device of the model")

    def extract_tensors(self, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors among the arguments of a call after the capture.

        Raises:
            ValueError: If the other arguments, or shapes and dtypes of the tensors, differ from those of the capture.
        """
        leaves, spec = tree_flatten((args, kwargs))
        if spec != self.spec:
            raise ValueError(f"the arguments must be those the graph was captured for, {self.spec}, got {spec}")
        for i, (new, held) in enumerate(zip(leaves, self.leaves, strict=True)):
            if describe_argument(new) != describe_argument(held):
                raise ValueError(
                    f"input {i} is {describe_argument(new)}, the graph was captured for {describe_argument(held)}"
                )
        return [z for z in leaves if isinstance(z, Tensor)]

    def replace_tensors(self, tensors: list[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Return the captured args and kwargs with their tensors replaced by these."""
        rest = iter(tensors)
        return tree_unflatten([next(rest) if isinstance(z, Tensor) else z for z in self.leaves], self.spec)


def describe_argument(z: Any) -> str:
    """Describe what a graph is captured for: the shape and dtype of a tensor, the value of another argument."""
    return f"a {z.dtype} tensor of shape {tuple(z.shape)}" if isinstance(z, Tensor) else repr(z)


@contextlib.contextmanager
def capture_mode(dtype: torch.dtype) -> Iterator[None]:
    """Context manager in which forwards run under autocast to `dtype` and do not read tensor values."""
    # The autocast cache would keep tensors in the memory of the graph alive between runs.
    autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with _mark_capturing(), autocast:
        yield


def freeze_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the model in evaluation mode, with parameters in `dtype`.

    Parameters with four dimensions are channels_last. Buffers keep their dtype.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, MultiInputConv3x3):
            module.freeze_bias()
    for parameter in model.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        parameter.data = parameter.data.to(dtype, memory_format=layout)
    return model


class ForwardGraph:
    """CUDA graph of a forward without gradients. A call takes new input tensors and returns new output tensors."""

    def __init__(
        self, model: nn.Module, arguments: Arguments, dtype: torch.dtype, function: Callable[..., Any] = call_module
    ):
        self.model, self.dtype, self.function = freeze_model(model, dtype), dtype, function
        self.inputs = [z.detach().clone() for z in arguments.tensors]
        self.arguments = arguments.replace_tensors(self.inputs)
        with torch.no_grad():
            self.graph, self.output = self.capture()

    def capture(self) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Capture the forward after warm-up runs, and return the graph and the output that its replays overwrite."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.forward()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            output = self.forward()
        return graph, output

    def forward(self) -> Any:
        """Run the model as the graph captures it."""
        args, kwargs = self.arguments
        with capture_mode(self.dtype):
            return self.function(self.model, *args, **kwargs)

    def __call__(self, *tensors: Tensor) -> Any:
        for new, held in zip(tensors, self.inputs, strict=True):
            held.copy_(new)
        self.graph.replay()
        return tree_map_only(Tensor, torch.clone, self.output)


class GradientGraph:
    """CUDA graphs of a forward and its backward, with the weights of the model itself.

    A call takes new input tensors and returns outputs with gradients.
    """

    def __init__(
        self, model: nn.Module, arguments: Arguments, dtype: torch.dtype, function: Callable[..., Any] = call_module
    ):
        examples = tuple(z.detach().clone() for z in arguments.tensors)
        self.run = self.capture(TensorModule(model, arguments, dtype, function), examples)

    def capture(self, module: "TensorModule", examples: tuple[Tensor, ...]) -> Callable[..., Any]:
        """Return a function that replays the forward of the module, and whose backward replays its backward."""
        return torch.cuda.make_graphed_callables(module, examples, WARM_UP_RUNS, allow_unused_input=True)

    def __call__(self, *tensors: Tensor) -> Any:
        return self.run(*tensors)


class TensorModule(nn.Module):
    """Wrap a model as a module whose only inputs are the tensors among its arguments, run in `capture_mode`."""

    def __init__(
        self, model: nn.Module, arguments: Arguments, dtype: torch.dtype, function: Callable[..., Any] = call_module
    ):
        super().__init__()
        self.model, self.arguments, self.dtype, self.function = model, arguments, dtype, function
        self.training = model.training

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.arguments.replace_tensors(list(tensors))
        with capture_mode(self.dtype):
            return self.function(self.model, *args, **kwargs)


@contextlib.contextmanager
def enable_cudnn_benchmark() -> Iterator[None]:
    """Context manager in which cuDNN measures its algorithms at the first call of each shape and uses the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
