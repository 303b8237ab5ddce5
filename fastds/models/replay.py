# SPDX-License-Identifier: Apache-2.0
"""A model's forward on a CPU as the list of kernels that it calls, to be called again without the Python between.

What a forward takes on small maps is in good part Python: checks, choices, new tensors. Here it runs once while
everything is written down: calls of the native module, which take addresses, and torch's own operators, with the
tensors they read and write. These lie in memory of their own, used again as soon as it is free, so that addresses stay.
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

_UNREPEATABLE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)
_CONVOLUTIONS = torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
Call = tuple[Callable, tuple, dict[str, Any]]


class Recorder(TorchDispatchMode):
    """A block in which every operator runs and is written down in `calls`, its result in memory of the recorder; but
    what follows from constants alone stays as it was calculated here.

    constants: tensors that no call changes; `overwritten` says whether one did, and `calls` is of no use then.
    """

    def __init__(self, calls: list[Call], pool: buffer_pool.Pool, constants: list[Tensor]):
        super().__init__()
        self.calls, self.pool = calls, pool
        self.constants = {_place(t): t for t in constants}  # which also keeps them alive
        self.overwritten = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "fastds":
            with self:  # what the op calls is written down, not the op
                return OPS[func._schema.name.removeprefix("fastds::")].run_kernel(*args, **kwargs)
        name = func.overloadpacket.__name__
        _check_repeatable(func, name, (args, kwargs))
        results = func(*args, **kwargs)
        if func._schema.is_mutable:
            self.overwritten |= any(_place(t) in self.constants for t in _written(func, args, kwargs))
            self.calls.append((func, args, kwargs))
            return results
        given = {_place(t) for t in _tensors((args, kwargs))}
        new = _tensors(results)
        if all(_place(t) in given for t in new):
            return results  # a view, or no tensor
        if given and given <= self.constants.keys() and name not in _EMPTY:
            self.constants |= {_place(t): t for t in new}
            return results
        kept = tree_map_only(Tensor, self._like, results)
        if name not in _EMPTY:
            self._write(func, args, kwargs, results, kept)
        return kept

    def _like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and strides in memory of the recorder."""
        if not tensor.numel():
            return tensor
        strides = tensor.contiguous().stride() if 0 in tensor.stride() else tensor.stride()
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
        block = self.pool.block(span * tensor.element_size())
        return torch.frombuffer(block, dtype=tensor.dtype).as_strided(tensor.shape, strides)

    def _write(self, func, args: tuple, kwargs: dict[str, Any], results, kept) -> None:
        """Write a call down whose results go to `kept`: itself there where it can, else by a copy."""
        _copy(kept, results)
        out, prepared = getattr(func.overloadpacket, "out", None), self._prepared(func, args, kwargs, results)
        if prepared is not None:
            self.calls.append((lambda *a: _copy(kept, onednn.convolve(*a)), prepared, {}))
        elif isinstance(kept, Tensor) and out is not None and _names(out) == _names(func):
            self.calls.append((out, args, {**kwargs, "out": kept}))
        else:
            self.calls.append((lambda *a, **k: _copy(kept, func(*a, **k)), args, kwargs))

    def _prepared(self, func, args: tuple, kwargs: dict[str, Any], result: Tensor) -> tuple | None:
        """Arguments of onednn.convolve, which need not rearrange constant filters in every call; None where the call is
        no such convolution or a bit of the result would change."""
        if func not in _CONVOLUTIONS:
            return None
        v = _values(func, args, kwargs)
        x, weight = v["input"], v["weight"]
        if _place(weight) not in self.constants or x.dim() != 4 or v.get("transposed") or not result.numel():
            return None
        if not onednn.can_prepare_filters(x.dtype):
            return None
        geometry = v["padding"], v["stride"], v["dilation"], v["groups"]
        prepared = x, onednn.prepare_filters(weight, x, *geometry), v["bias"], *geometry
        return prepared if _same(onednn.convolve(*prepared), result) else None


def _tensors(tree) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _place(tensor: Tensor) -> int:
    """Which memory it lies in, views of one tensor in the same."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _written(func, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Arguments that an operator changes."""
    values = _values(func, args, kwargs)
    changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([values[name] for name in changed])


def _values(func, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of all arguments of a call, by their names."""
    arguments = func._schema.arguments
    given = {a.name: value for a, value in zip(arguments, args, strict=False)}
    return {a.name: a.default_value for a in arguments} | given | kwargs


def _names(func) -> list[str]:
    return [argument.name for argument in func._schema.arguments if argument.name != "out"]


def _copy(to, results) -> None:
    for kept, result in zip(tree_leaves(to), tree_leaves(results), strict=True):
        if isinstance(result, Tensor):
            kept.copy_(result)


def _same(a, b) -> bool:
    """To the bit, missing values (NaN) too."""
    if not isinstance(a, Tensor):
        return a == b
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _check_repeatable(func, name: str, given) -> None:
    if not any(tag in func.tags for tag in _UNREPEATABLE):
        return
    # Of an index by places the result's shape is known, of one by a mask it is not.
    masked = any(isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_leaves(given))
    if name != "index" or masked:
        raise RuntimeError(f"the forward cannot be repeated: it asks for values, or draws random ones ({func})")


class ReplayedForward:
    """Repeats the calls of a forward without gradients: tensors -> new outputs.

    Args:
        model: a copy of it is taken, in evaluation mode.
        arguments: fastds.models.graph.Arguments of the forward.
        dtype: of the arithmetic; not torch.float32: under autocast.

    Raises: RuntimeError where the forward does more than to call operators one after the other.
    """

    def __init__(self, model: nn.Module, arguments, dtype: torch.dtype):
        self.model, self.dtype = copy.deepcopy(model).eval().requires_grad_(False), dtype
        examples = [z.detach() for z in arguments.leaves if isinstance(z, Tensor)]
        self.inputs = [z.clone() for z in examples]
        self.args, self.kwargs = arguments.with_tensors(self.inputs)
        with torch.no_grad(), native.private_workspaces() as spaces, packed_weight_cache.private_cache() as weights:
            self._forward()  # weights are packed, the workspace grows
            recorder = self._record([*self.model.parameters(), *self.model.buffers()])
            if recorder.overwritten:
                recorder = self._record([])
            packed = [entry for entry in weights.values() if not entry[1].is_mkldnn]  # those are arguments of calls
            self.kept = spaces, packed, recorder  # whose addresses the calls have
        self._check([z.flip(-1) if z.is_floating_point() and z.dim() else z for z in examples])

    def _forward(self) -> Any:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            return self.model(*self.args, **self.kwargs)

    def _record(self, constants: list[Tensor]) -> Recorder:
        self.calls: list[Call] = []
        self.pool = buffer_pool.Pool()
        recorder = Recorder(self.calls, self.pool, constants)
        with native.record_calls(self.calls), recorder:
            self.output = self._forward()
        return recorder

    def _check(self, tensors: list[Tensor]) -> None:
        """That other inputs give what the model gives for them."""
        got = tree_leaves(self(*tensors))
        with torch.no_grad():
            expected = tree_leaves(self._forward())  # of the inputs, which hold the tensors now
        if not all(map(_same, got, expected)):
            raise RuntimeError("the forward cannot be repeated: other inputs give other numbers than the model does")

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Any:
        for new, held in zip(tensors, self.inputs, strict=True):
            held.copy_(new)
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)
        return tree_map_only(Tensor, torch.clone, self.output)
