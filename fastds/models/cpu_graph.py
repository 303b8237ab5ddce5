# SPDX-License-Identifier: Apache-2.0
"""Record the kernel calls of a forward on a CPU and replay them without Python overhead, like a CUDA graph.

On small inputs much of the time of a forward is spent in Python: argument checks, algorithm selection and tensor
allocation. The recorder runs the forward once and stores the calls of the native module and of ATen operators. It owns
the memory of the intermediate tensors, so that their addresses stay valid for the replay.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastds.ops.core import buffer_pool, native, onednn, packed_weight_cache
from fastds.ops.core.registry import OPS
from fastds.ops.core.teams import adapt_threads_to

_UNREPEATABLE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)
_CONVOLUTIONS = torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
Call = tuple[Callable, tuple, dict[str, Any]]


def call_module(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return model(*args, **kwargs), the function that graphs capture by default."""
    return model(*args, **kwargs)


class GraphRecorder(TorchDispatchMode):
    """Dispatch mode that runs operators and records the calls that a replay must repeat.

    Results of recorded calls lie in memory of the recorder. Views, and results that depend on constants alone, are
    computed once and not recorded.

    Args:
        calls: list to which the recorded calls are appended.
        pool: allocator for intermediate results. Memory of dead tensors is reused.
        constants: tensors that are assumed not to change.

    Attributes:
        overwritten: True if a call changed a constant. The recorded calls are invalid then.
    """

    def __init__(self, calls: list[Call], pool: buffer_pool.Pool, constants: list[Tensor]):
        super().__init__()
        self.calls, self.pool = calls, pool
        self.constants = {_get_storage_key(t): t for t in constants}  # the dict also keeps the tensors alive
        self.overwritten = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "fastds":
            with self:  # record the calls inside the op, not the op itself
                return OPS[func._schema.name.removeprefix("fastds::")].run_kernel(*args, **kwargs)
        name = func.overloadpacket.__name__
        _check_repeatable(func, name, (args, kwargs))
        results = func(*args, **kwargs)
        if func._schema.is_mutable:
            self.overwritten |= any(_get_storage_key(t) in self.constants for t in _find_mutated(func, args, kwargs))
            self.calls.append((func, args, kwargs))
            return results
        given = {_get_storage_key(t) for t in _tensors((args, kwargs))}
        new = _tensors(results)
        if all(_get_storage_key(t) in given for t in new):
            return results  # a view, or a result without tensors
        if given and given <= self.constants.keys() and name not in _EMPTY:
            self.constants |= {_get_storage_key(t): t for t in new}
            return results
        stored = tree_map_only(Tensor, self._allocate_like, results)
        if name not in _EMPTY:
            self._record_call(func, args, kwargs, results, stored)
        return stored

    def _allocate_like(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same shape and strides in memory of the recorder."""
        if not tensor.numel():
            return tensor
        strides = tensor.contiguous().stride() if 0 in tensor.stride() else tensor.stride()
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
        block = self.pool.block(span * tensor.element_size())
        return torch.frombuffer(block, dtype=tensor.dtype).as_strided(tensor.shape, strides)

    def _record_call(self, func, args: tuple, kwargs: dict[str, Any], results, stored) -> None:
        """Record a call that writes its results to `stored`.

        If the operator has an `out` variant, the variant writes to `stored` directly. Otherwise a copy follows the
        operator. A convolution with a constant weight is replaced by a call of oneDNN with a prepacked weight.

        Args:
            func: the operator.
            args: positional arguments of the operator.
            kwargs: keyword arguments of the operator.
            results: results of the operator.
            stored: tensors of the recorder for the results.
        """
        _copy(stored, results)
        out, prepared = (
            getattr(func.overloadpacket, "out", None),
            self._prepare_convolution(func, args, kwargs, results),
        )
        if prepared is not None:
            self.calls.append((lambda *a: _copy(stored, onednn.convolve(*a)), prepared, {}))
        elif isinstance(stored, Tensor) and out is not None and _get_argument_names(out) == _get_argument_names(func):
            self.calls.append((out, args, {**kwargs, "out": stored}))
        else:
            self.calls.append((lambda *a, **k: _copy(stored, func(*a, **k)), args, kwargs))

    def _prepare_convolution(self, func, args: tuple, kwargs: dict[str, Any], result: Tensor) -> tuple | None:
        """Return arguments of `onednn.convolve` with a prepacked constant weight.

        Returns:
            The arguments, or None if oneDNN cannot replace this call with an equal result.
        """
        if func not in _CONVOLUTIONS:
            return None
        v = _bind_arguments(func, args, kwargs)
        x, weight = v["input"], v["weight"]
        if _get_storage_key(weight) not in self.constants or x.dim() != 4 or v.get("transposed") or not result.numel():
            return None
        if not onednn.can_prepare_filters(x.dtype):
            return None
        geometry = v["padding"], v["stride"], v["dilation"], v["groups"]
        prepared = x, onednn.prepare_filters(weight, x, *geometry), v["bias"], *geometry
        return prepared if is_equal(onednn.convolve(*prepared), result) else None


def _tensors(tree) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _get_storage_key(tensor: Tensor) -> int:
    """Return a key of the memory of a tensor. Views of one tensor have the same key."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _find_mutated(func, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the argument tensors that an operator changes in place."""
    values = _bind_arguments(func, args, kwargs)
    changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([values[name] for name in changed])


def _bind_arguments(func, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name, including defaults."""
    arguments = func._schema.arguments
    given = {a.name: value for a, value in zip(arguments, args, strict=False)}
    return {a.name: a.default_value for a in arguments} | given | kwargs


def _get_argument_names(func) -> list[str]:
    return [argument.name for argument in func._schema.arguments if argument.name != "out"]


def _copy(to, results) -> None:
    for stored, result in zip(tree_leaves(to), tree_leaves(results), strict=True):
        if isinstance(result, Tensor):
            stored.copy_(result)


def is_equal(a, b) -> bool:
    """Return True if all values are equal. Two missing values (NaN) count as equal."""
    if not isinstance(a, Tensor):
        return a == b
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _check_repeatable(func, name: str, given) -> None:
    if not any(tag in func.tags for tag in _UNREPEATABLE):
        return
    # An index by positions has a known result shape, an index by a boolean mask does not.
    masked = any(isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_leaves(given))
    if name != "index" or masked:
        raise RuntimeError(f"the forward cannot be repeated: it reads tensor values or draws random numbers ({func})")


class CPUForwardGraph:
    """Replay the kernel calls of a forward without gradients. A call takes new input tensors and returns new outputs.

    Args:
        model: network, of which a copy in evaluation mode is recorded.
        arguments: arguments of the forward, a `fastds.models.graph.Arguments`.
        dtype: dtype of the arithmetic. Any dtype but torch.float32 runs under autocast.
        function: function or method of the model that is recorded, called as function(model, *args, **kwargs).

    Raises:
        RuntimeError: If the forward reads tensor values, draws random numbers, or depends on its inputs in any way that
            a fixed list of calls cannot reproduce.
    """

    def __init__(self, model: nn.Module, arguments, dtype: torch.dtype, function: Callable[..., Any] = call_module):
        self.model, self.dtype = copy.deepcopy(model).eval().requires_grad_(False), dtype
        self.function = function
        examples = [z.detach() for z in arguments.tensors]
        self.inputs = [z.clone() for z in examples]
        self.args, self.kwargs = arguments.replace_tensors(self.inputs)
        with torch.no_grad(), native.private_workspaces() as spaces, packed_weight_cache.private_cache() as weights:
            self._forward()  # packs the weights and allocates the workspace
            recorder = self._record([*self.model.parameters(), *self.model.buffers()])
            if recorder.overwritten:
                recorder = self._record([])
            packed = [
                entry for entry in weights.values() if not entry[1].is_mkldnn
            ]  # mkldnn tensors are arguments of the calls
            self.stored = spaces, packed, recorder  # the calls hold addresses in these
        self._check([z.flip(-1) if z.is_floating_point() and z.dim() else z for z in examples])

    def _forward(self) -> Any:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            return self.function(self.model, *self.args, **self.kwargs)

    def _record(self, constants: list[Tensor]) -> GraphRecorder:
        self.calls: list[Call] = []
        self.pool = buffer_pool.Pool()
        recorder = GraphRecorder(self.calls, self.pool, constants)
        with native.record_calls(self.calls), recorder:
            self.output = self._forward()
        return recorder

    def _check(self, tensors: list[Tensor]) -> None:
        """Raise RuntimeError unless other inputs give the same result in a replay as in the model."""
        got = tree_leaves(self(*tensors))
        with torch.no_grad():
            expected = tree_leaves(self._forward())  # reads self.inputs, into which the replay copied the tensors
        if not all(map(is_equal, got, expected)):
            raise RuntimeError("the forward cannot be repeated: for other inputs the replay and the model differ")

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Any:
        for new, held in zip(tensors, self.inputs, strict=True):
            held.copy_(new)
        with adapt_threads_to(self.model):
            for function, args, kwargs in self.calls:
                function(*args, **kwargs)
        return tree_map_only(Tensor, torch.clone, self.output)
