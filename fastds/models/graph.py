# SPDX-License-Identifier: Apache-2.0
"""A model's forward for fixed shapes as one graph: on a GPU hundreds of small kernels start with one launch, on a CPU
nothing but kernels runs."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from fastds.models.replay import ReplayedForward
from fastds.nn.convolutions import SummedConv3x3

WARM_UP_RUNS = 3  # Triton compiles, cuDNN chooses and the caching allocator fills before the capture
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def capturing() -> bool:
    """Whether a forward runs, in this thread, as a graph will hold it: it must not ask for values, which would wait for
    the device."""
    return not torch.compiler.is_compiling() and _capturing.get()


@contextlib.contextmanager
def _captured() -> Iterator[None]:
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def compile_graph(
    model: nn.Module, *inputs: Any, dtype: torch.dtype | None = None, train: bool = False, **options: Any
) -> Callable[..., Any]:
    """Capture model(*inputs, **options): as one CUDA graph, or on a CPU as the list of its kernels.

    fast = fastds.compile_graph(model, x);  y = fast(x2)

    Tensors among the arguments are examples, whose values do not matter; everything else (steps, size, scale) is fixed.
    Missing values (NaN) are not looked for, they spread. What forward would compute on the CPU (optical flow, the
    filling of missing frames) is computed before each replay.

    Args:
        model: any network of fastds, on a CPU or a CUDA device.
        inputs, options: arguments of its forward, tensors on the model's device.
        dtype: of the arithmetic, torch.bfloat16, torch.float16 or torch.float32; inputs keep their own. None:
            torch.bfloat16 on a CUDA device, torch.float32 on a CPU.
        train: False: inference, with a copy of the weights of now (on a CUDA device in `dtype`), in evaluation mode.
            True, on a CUDA device: a function with gradients, whose backward is a graph, too; it reads the model's own
            weights, in the mode the model is in.

    Returns:
        function of the same arguments, for tensors of the same shapes and dtypes, -> what forward returns, on a CPU to
        the bit. One call at a time: calls on several streams or threads share the buffers of the graph.

    Raises:
        ValueError: the model or an input is not on one device of these, another dtype, train on a CPU; in a later call
            another shape or another fixed argument. TypeError: the model is no torch.nn.Module. RuntimeError: on a CPU,
            a forward that asks for values or draws random ones.
    """
    device = graph_device(model, dtype, train)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    args, kwargs = given(model, inputs, options)
    arguments = Arguments(args, kwargs, device)
    with _on(device):
        kind = GradientGraph if train else ForwardGraph if device.type == "cuda" else ReplayedForward
        graph = kind(model, arguments, dtype)

    def call(*inputs: Any, **options: Any) -> Any:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return graph(*arguments.tensors(*given(model, inputs, options)))

    return call


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """A block in which a graph is captured on the device."""
    if device.type == "cpu":
        with _captured():
            yield
    else:
        with torch.cuda.device(device), cudnn_benchmark():
            yield


def graph_device(model: nn.Module, dtype: torch.dtype | None, train: bool = False) -> torch.device:
    """The device of the model; raises unless a graph can be captured there."""
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


def given(model: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments of forward, with what the model computes of them on the CPU."""
    return (model.with_flow(*inputs, **options), {}) if hasattr(model, "with_flow") else (inputs, options)


class Arguments:
    """The arguments that a graph is captured for: tensors by their shape and dtype, others as they are."""

    def __init__(self, args: tuple, kwargs: dict[str, Any], device: torch.device):
        self.leaves, self.spec = tree_flatten((args, kwargs))
        for i, z in enumerate(self.leaves):
            if isinstance(z, Tensor) and z.device != device:
                raise ValueError(f"input {i} is on {z.device}, expected {device}, the device of the model")

    def tensors(self, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of another call; ValueError unless all else is the same."""
        leaves, spec = tree_flatten((args, kwargs))
        if spec != self.spec:
            raise ValueError(f"the arguments must be those the graph was captured for, {self.spec}, got {spec}")
        for i, (new, held) in enumerate(zip(leaves, self.leaves, strict=True)):
            if _kind(new) != _kind(held):
                raise ValueError(f"input {i} is {_kind(new)}, the graph was captured for {_kind(held)}")
        return [z for z in leaves if isinstance(z, Tensor)]

    def with_tensors(self, tensors: list[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with these tensors for those of the capture."""
        rest = iter(tensors)
        return tree_unflatten([next(rest) if isinstance(z, Tensor) else z for z in self.leaves], self.spec)


def _kind(z: Any) -> str:
    return f"a {z.dtype} tensor of shape {tuple(z.shape)}" if isinstance(z, Tensor) else repr(z)


@contextlib.contextmanager
def as_captured(dtype: torch.dtype) -> Iterator[None]:
    """Forwards inside the block run as a graph holds them: in `dtype`, without a look at values."""
    # The cache of autocast would keep tensors of the graph's memory alive between the runs.
    autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with _captured(), autocast:
        yield


def frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for inference, weights in `dtype` and channels_last; buffers, such as means in kelvin, as they are."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, SummedConv3x3):
            module.freeze_bias()
    for parameter in model.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        parameter.data = parameter.data.to(dtype, memory_format=layout)
    return model


class ForwardGraph:
    """Replays a forward without gradients: tensors -> new outputs."""

    def __init__(self, model: nn.Module, arguments: Arguments, dtype: torch.dtype):
        self.model, self.dtype = frozen(model, dtype), dtype
        self.inputs = [z.detach().clone() for z in arguments.leaves if isinstance(z, Tensor)]
        self.arguments = arguments.with_tensors(self.inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    self.forward()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.output = self.forward()

    def forward(self) -> Any:
        """What is captured."""
        args, kwargs = self.arguments
        with as_captured(self.dtype):
            return self.model(*args, **kwargs)

    def __call__(self, *tensors: Tensor) -> Any:
        for new, held in zip(tensors, self.inputs, strict=True):
            held.copy_(new)
        self.graph.replay()
        return tree_map_only(Tensor, torch.clone, self.output)


class GradientGraph:
    """Replays a forward and its backward, of the model's own weights: tensors -> outputs with gradients."""

    def __init__(self, model: nn.Module, arguments: Arguments, dtype: torch.dtype):
        examples = tuple(z.detach().clone() for z in arguments.leaves if isinstance(z, Tensor))
        self.run = torch.cuda.make_graphed_callables(
            OfTensors(model, arguments, dtype), examples, WARM_UP_RUNS, allow_unused_input=True
        )

    def __call__(self, *tensors: Tensor) -> Any:
        return self.run(*tensors)


class OfTensors(nn.Module):
    """A model as a module of the tensors among its arguments, run as captured."""

    def __init__(self, model: nn.Module, arguments: Arguments, dtype: torch.dtype):
        super().__init__()
        self.model, self.arguments, self.dtype = model, arguments, dtype
        self.training = model.training

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.arguments.with_tensors(list(tensors))
        with as_captured(self.dtype):
            return self.model(*args, **kwargs)


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """cuDNN times its algorithms at the first call of each shape; with fixed shapes that is once and for all."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
