# SPDX-License-Identifier: Apache-2.0
"""Replay the forwards of networks from graphs for inputs whose shapes repeat.

    with use_graphs(GraphCache()):
        for x in fields:
            y = model(x)  # replayed after the first calls of each shape

The methods of networks that can be captured are marked with `capturable`. Outside of `use_graphs` these methods run as
they are written.
"""

import contextlib
import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastds.models import graph
from fastds.models.cpu_graph import is_equal
from fastds.models.graph import Arguments
from fastds.ops.core.backends import forced_backend
from fastds.ops.core.teams import adapt_threads_to
from fastds.ops.impl.conv3x3.algorithm import current_algorithm

TRAIN_DEVICES = ("cuda",)  # on which a backward can be captured
MAX_GRAPHS = 8  # a graph holds the memory of its intermediate results
MAX_SHAPES = 1024  # of which calls are counted
_MAX_REASON = 300  # characters of the text of an error


@dataclasses.dataclass(frozen=True)
class CaptureRule:
    """When a graph is captured.

    Attributes:
        calls: number of calls with the same shapes before the capture.
        max_seconds: longest mean duration of these calls, or None. Graphs save the time of Python, which is a small
            part of long calls on a CPU.
    """

    calls: int
    max_seconds: float | None


# A capture on a CPU takes as long as about 10 calls, of which a replay saves 15 to 45 %.
RULES = {"cuda": CaptureRule(2, None), "cpu": CaptureRule(32, 0.05)}
# Largest root mean square of the difference between a CUDA graph and the forward, relative to that of the forward. The
# dtypes of weights and the algorithms of cuDNN differ.
TOLERANCES = {torch.float32: 1e-2, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class GraphCache:
    """Graphs by module, method, shapes and dtypes.

    A graph is captured when a shape has repeated as often as RULES says. It is checked with two inputs, and dropped if
    its outputs are not those of the forward. Calls without a graph run as if there were no cache.

    Args:
        train: False replays calls without gradients in evaluation mode. True replays calls with gradients in training
            mode, forward and backward, on CUDA devices.

    Attributes:
        calls: number of calls of methods that could be captured.
        replays: number of these calls that ran as graphs.
        failures: reason why a forward runs without a graph, by name of the network.
    """

    def __init__(self, train: bool = False):
        self.train = train
        self.calls, self.replays = 0, 0
        self.failures: dict[str, str] = {}
        self._entries: dict[tuple, _Entry] = {}
        self._weights: dict[nn.Module, list[Tensor]] = {}  # copies of the weights in graphs without gradients
        self._lock = threading.Lock()  # replays share buffers

    def __reduce__(self) -> tuple:
        return GraphCache, (self.train,)  # a copy, also in another process, captures its own graphs

    def call(self, module: nn.Module, function: Callable[..., Any], args: tuple, kwargs: dict, finite: bool) -> Any:
        """Return function(module, *args, **kwargs), from a graph if there is one.

        Args:
            module: network.
            function: method of the network.
            args: positional arguments.
            kwargs: keyword arguments.
            finite: whether only finite inputs may be replayed.
        """
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        if not self._is_eligible(module, device) or not self._lock.acquire(blocking=False):
            return _run(function, module, args, kwargs)
        try:
            self.calls += 1
            return self._call(module, function, args, kwargs, device, finite)
        finally:
            self._lock.release()

    def _is_eligible(self, module: nn.Module, device: torch.device) -> bool:
        if device.type not in RULES or torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        if forced_backend() is not None or current_algorithm() != "auto":  # a graph has the kernels of its capture
            return False
        if self.train:
            return module.training and torch.is_grad_enabled() and device.type in TRAIN_DEVICES
        return not (module.training or torch.is_grad_enabled())

    def _call(
        self, module: nn.Module, function: Callable[..., Any], args: tuple, kwargs: dict, device: torch.device,
        finite: bool,
    ) -> Any:  # fmt: skip
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        try:
            arguments = Arguments(args, kwargs, device)
        except ValueError:  # a tensor on another device
            return _run(function, module, args, kwargs)
        entry = self._find_entry(module, function, arguments, dtype)
        if entry is None or not _can_replay(arguments.tensors, finite):
            return _run(function, module, args, kwargs)
        if entry.graph is not None and not entry.on_probation:
            self.replays += 1
            return entry.graph(*arguments.tensors)
        start = time.perf_counter()
        y = _run(function, module, args, kwargs)
        entry.calls, entry.seconds = entry.calls + 1, entry.seconds + time.perf_counter() - start
        if entry.graph is not None:
            self._check_again(entry, entry.graph, arguments)
        elif self._is_due(entry, device):
            self._capture(entry, arguments, y)
        return y

    def _find_entry(
        self, module: nn.Module, function: Callable[..., Any], arguments: Arguments, dtype: torch.dtype
    ) -> "_Entry | None":
        """Return the entry of a call, or None if there are too many entries."""
        parts = tuple(map(graph.describe_argument, arguments.leaves))
        key: tuple[Any, ...] = (module, getattr(module, "capture_state", None), function, arguments.spec, parts, dtype)
        if self.train:  # a graph reads the memory of the weights
            key = (*key, *((p.data_ptr(), p.requires_grad) for p in module.parameters()))
        if key not in self._entries and len(self._entries) >= MAX_SHAPES:
            return None
        return self._entries.setdefault(key, _Entry(module, function, dtype))

    def _is_due(self, entry: "_Entry", device: torch.device) -> bool:
        rule = RULES[device.type]
        if entry.failed or entry.calls < rule.calls:
            return False
        if rule.max_seconds is not None and entry.seconds / entry.calls > rule.max_seconds:
            return False
        return sum(e.graph is not None for e in self._entries.values()) < MAX_GRAPHS

    def _capture(self, entry: "_Entry", arguments: Arguments, y: Any) -> None:
        """Capture a graph and check it with the inputs of a call, of which y is the output, and with other inputs."""
        others = [z.flip(-1) if z.is_floating_point() and z.dim() else z for z in arguments.tensors]
        try:
            with _preserve_random_state(arguments.device), _preserve_buffers(entry.module):
                with torch.autocast(arguments.device.type, enabled=False):
                    made = graph.capture(entry.module, arguments, entry.dtype, entry.function, self.train)
                if self.train:
                    _check_gradients(made, entry, arguments, others)
                else:
                    exact = arguments.device.type == "cpu"
                    _check_outputs(made(*arguments.tensors), y, entry.dtype, exact)
                    _check_outputs(made(*others), entry.run(arguments, others), entry.dtype, exact)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            self._note_failure(entry, error)
            return
        entry.graph, entry.on_probation = made, self.train
        if not self.train:
            self._weights.setdefault(entry.module, [t.detach().clone() for t in _list_weights(entry.module)])

    def _check_again(self, entry: "_Entry", made: Callable[..., Any], arguments: Arguments) -> None:
        """Check a graph with gradients after a step of the optimizer, which has changed the weights."""
        try:
            with _preserve_random_state(arguments.device), _preserve_buffers(entry.module):
                _check_gradients(made, entry, arguments, arguments.tensors)
        except RuntimeError as error:
            entry.graph = None
            self._note_failure(entry, error)
        entry.on_probation = False

    def _note_failure(self, entry: "_Entry", error: Exception) -> None:
        entry.failed = True
        name = getattr(getattr(entry.module, "card", None), "name", "") or type(entry.module).__name__
        self.failures.setdefault(name, (str(error) or type(error).__name__).splitlines()[0][:_MAX_REASON])

    def drop_outdated(self) -> None:
        """Drop the graphs without gradients of modules whose weights have changed since the capture."""
        for module, copies in list(self._weights.items()):
            now = _list_weights(module)
            same = len(now) == len(copies) and all(
                a.shape == b.shape and a.device == b.device and torch.equal(a, b)
                for a, b in zip(now, copies, strict=True)
            )
            if not same:
                del self._weights[module]
                self._entries = {key: e for key, e in self._entries.items() if key[0] is not module}

    def make_notes(self) -> list[str]:
        """Return notes for the user: how many forwards were replayed, and why others were not."""
        notes = [f"graphs: {self.replays} of {self.calls} forwards replayed"] if self.replays else []
        return notes + [f"no graph of {name}: {reason}" for name, reason in self.failures.items()]


@dataclasses.dataclass
class _Entry:
    """Calls of one module and method with one set of shapes.

    Attributes:
        module: network.
        function: method of the network.
        dtype: dtype of the arithmetic.
        calls: number of calls without a graph.
        seconds: their duration.
        graph: the graph, or None.
        on_probation: whether a graph with gradients is to be checked again in the next call.
        failed: whether a graph could not be captured or its outputs were wrong.
    """

    module: nn.Module
    function: Callable[..., Any]
    dtype: torch.dtype
    calls: int = 0
    seconds: float = 0.0
    graph: Callable[..., Any] | None = None
    on_probation: bool = False
    failed: bool = False

    def run(self, arguments: Arguments, tensors: list[Tensor]) -> Any:
        """Run the method without a graph, with these tensors in place of those among the arguments."""
        args, kwargs = arguments.replace_tensors(tensors)
        return self.function(self.module, *args, **kwargs)


_active: ContextVar[GraphCache | None] = ContextVar("graph cache", default=None)


@contextlib.contextmanager
def use_graphs(cache: GraphCache | None) -> Iterator[None]:
    """Context manager in which calls of capturable methods are replayed from the graphs of the cache.

    Args:
        cache: graphs, which are also made here. None: no graphs.
    """
    token = _active.set(cache)
    try:
        yield
    finally:
        _active.reset(token)


def capturable(function: Callable[..., Any] | None = None, *, finite: bool = False) -> Callable[..., Any]:
    """Mark a method of a network as one that graphs may replay in `use_graphs`.

    The output of the method must depend on nothing but its arguments, the weights and buffers of the module, and the
    attribute `capture_state` of the module, if there is one. The values of tensors must not decide which operators run.

    Args:
        function: the method.
        finite: True if values that are not finite change which operators run. Such inputs are never replayed.
    """
    if function is None:
        return functools.partial(capturable, finite=finite)

    @functools.wraps(function)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or graph.is_capturing():
            return function(self, *args, **kwargs)
        if (cache := _active.get()) is None:
            return _run(function, self, args, kwargs)
        with use_graphs(None):  # the captured method may call others
            return cache.call(self, function, args, kwargs, finite)

    return method


def _run(function: Callable[..., Any], module: nn.Module, args: tuple, kwargs: dict) -> Any:
    with adapt_threads_to(module):
        return function(module, *args, **kwargs)


def _can_replay(tensors: list[Tensor], finite: bool) -> bool:
    if any(z.requires_grad for z in tensors):
        return False
    floats = [z for z in tensors if z.is_floating_point()]
    return not finite or not floats or math.isfinite(float(sum(z.sum(dtype=torch.float32) for z in floats)))


def _list_weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _preserve_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context that restores torch's random state on the CPU and on the device."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def _preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Context manager that restores the buffers of a module, such as the statistics of batch normalisation."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.data.copy_(values)  # autograd may have saved the buffer


def _check_outputs(got: Any, expected: Any, dtype: torch.dtype, exact: bool) -> None:
    """Raise RuntimeError if the outputs of a graph are not those of the forward.

    Args:
        got: outputs of the graph.
        expected: outputs of the forward.
        dtype: dtype of the arithmetic.
        exact: whether all values must be equal.
    """
    first, second = (tree_leaves(t) for t in (got, expected))
    if len(first) != len(second):
        raise RuntimeError("the graph and the forward differ in the number of outputs")
    for a, b in zip(first, second, strict=True):
        if not isinstance(b, Tensor):
            same = is_equal(a, b)
        elif a.shape != b.shape or a.dtype != b.dtype:
            same = False
        else:
            same = is_equal(a, b) if exact or not b.is_floating_point() else _is_close(a, b, TOLERANCES[dtype])
        if not same:
            raise RuntimeError("the graph and the forward give different outputs for the same inputs")


def _is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return whether the root mean square of a - b is small, and missing values are the same."""
    a, b = a.detach().double(), b.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    return bool((a - b).square().sum() <= tolerance**2 * b.square().sum())


def _check_gradients(made: Callable[..., Any], entry: _Entry, arguments: Arguments, tensors: list[Tensor]) -> None:
    """Raise RuntimeError if outputs or gradients of a graph are not those of the forward and the backward.

    Args:
        made: the graph.
        entry: entry of the calls.
        arguments: arguments of the capture.
        tensors: tensors that replace those of the arguments.
    """
    parameters, dtype = [p for p in entry.module.parameters() if p.requires_grad], entry.dtype
    with _preserve_buffers(entry.module):
        expected = entry.run(arguments, tensors)
    got = made(*tensors)
    _check_outputs(got, expected, dtype, exact=False)
    gradients = []
    for outputs in (expected, got):
        outputs = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad]
        # all elements count differently, so that a permutation is seen
        cotangents = [torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype) for y in outputs]
        gradients.append(torch.autograd.grad(outputs, parameters, cotangents, allow_unused=True))
    for p, a, b in zip(parameters, *gradients, strict=True):
        a, b = (torch.zeros_like(p) if g is None else g for g in (a, b))
        if not _is_close(b, a, 10 * TOLERANCES[dtype]):
            raise RuntimeError("the graph and the forward give different gradients for the same inputs")
