# SPDX-License-Identifier: Apache-2.0
"""Plans of calls: repeat the native calls of an op without the Python code around them.

The checks, selections and conversions of a small call cost more than its kernel. The second call with the same key (op,
shapes, strides, dtypes, options, threads) is therefore recorded: its native calls, and which of their arguments are
addresses of inputs, outputs, temporaries, packed weights or workspace. The recorded plan runs on other values, and is
stored if it gives the same bits as the Python code. Later calls with the key run in csrc/core/call_plans.h. A call has
no plan if its result depends on anything else than native calls, copies and casts, or if its tensors are large. Under
autocast, the plan includes its casts; a call in which a NaN is cast runs in Python. Calls with gradients and calls that
torch computes have plans of another kind, see function_plans.py, and so do calls on a GPU, see gpu_plans.py.

The environment variable FASTDS_PLANS=0 switches plans off. Plans of calls on a GPU are only made with FASTDS_PLANS=gpu,
until the tests have run on a GPU.
"""

import functools
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fastds.ops.core import function_plans, gpu_plans, native, triton_loader

# 4 MiB: the Python code takes a negligible part of the time of a call with larger tensors.
MAX_BYTES = 4 << 20
MAX_SCRATCH_BYTES = 16 << 20  # temporaries and workspace; each thread holds the memory of its largest plan
ALIGNMENT = 64  # bytes, of temporaries
MIN_ADDRESS = 1 << 22  # no tensor has a smaller address; smaller integers are constants
# Classes of native arguments that a plan repeats unchanged. Objects of other classes may hold addresses.
_CONSTANTS = frozenset(
    ("NoneType", "bool", "int", "float", "str", "DeformConv2dDims", "InrQueryDims", "PixelShuffleParams")
)
_CAST_CODES = {t: c for t, c in native.DTYPE_CODES.items() if t != torch.float64}  # dtypes that a plan can cast
_ALLOCATIONS = frozenset(("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"))
# Names of functions of torch that return views and properties. A call that uses functions other than these,
# _ALLOCATIONS and _COPIES has no plan, because such functions compute values or return values that the Python code may
# depend on.
_HARMLESS = frozenset(
    ("__get__", "chunk", "data_ptr", "detach", "dim", "element_size", "is_conj", "is_contiguous", "is_floating_point")
    + ("is_neg", "narrow", "numel", "permute", "promote_types", "size", "split", "storage_offset", "stride")
    + ("t", "tensor_split", "transpose", "unbind", "unflatten", "untyped_storage", "view", "view_as")
)
# copy or cast the tensor, or return a view or the tensor itself
_COPIES = frozenset(("clone", "contiguous", "flatten", "float", "reshape", "resolve_neg", "to"))


Function = TypeVar("Function", bound=Callable[..., Any])


class PlanRefusedError(Exception):
    """A call cannot be described as a list of native calls."""


def _no_plan(*args) -> None:
    """Take the place of the native find_plan where there are no plans."""


def _load() -> Any:
    """Return the native module, initialized for plans, or None if it or the DLPack table of torch is missing."""
    if native.get_missing_reason() is not None or not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return None
    module = native.get_module()
    module.plans_initialize({
        "Tensor": torch.Tensor, "Parameter": torch.nn.Parameter, "dtype": torch.dtype,
        "grad_enabled": torch.is_grad_enabled, "num_threads": torch.get_num_threads,
        "dispatch_modes": torch._C._len_torch_dispatch_stack, "function_modes": torch._C._len_torch_function_stack,
        "functorch": torch._C._are_functorch_transforms_active, "tracing": torch._C._is_tracing,
        "any_autocast_enabled": torch._C._is_any_autocast_enabled, "autocast_enabled": torch.is_autocast_enabled,
        "autocast_dtype": torch.get_autocast_dtype, "autocast_cache_enabled": torch.is_autocast_cache_enabled,
        "deterministic": torch._C._get_deterministic_algorithms, "onednn_enabled": torch._C._get_mkldnn_enabled,
        "cublas_tf32": torch._C._get_cublas_allow_tf32, "profiler": torch.autograd.profiler, "forward_ad": forward_ad,
        "empty_strided": torch.empty_strided, "is_neg": torch.Tensor.is_neg, "is_view": torch.Tensor._is_view,
    })  # fmt: skip
    return module if module.plans_available() else None


def _lack_memory(*args) -> bool:
    """Return True if one of the arguments is a zero tensor, which has no memory."""
    return any(value._is_zerotensor() for value in _tensors(args) if type(value) in (Tensor, torch.nn.Parameter))


_native: Any = _load()
lack_memory = _lack_memory if _native is None else _native.lack_memory
gpu_plans_enabled = os.environ.get("FASTDS_PLANS") == "gpu"
_module: Any = None if os.environ.get("FASTDS_PLANS") == "0" or os.environ.get("FASTDS_BACKEND") else _native
find_plan = _no_plan if _module is None else _module.find_plan


def planned(function: Function) -> Function:
    """Decorator for public ops: run the plan of a call if there is one, else the function."""
    if _module is None:
        return function

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        found = find_plan(function, *args, *kwargs.values(), tuple(kwargs)) if kwargs else find_plan(function, *args)
        if found is None:
            return function(*args, **kwargs)
        return record(function, function, args, kwargs) if found is True else found

    return cast(Function, call)


_inner_calls: dict[object, Callable[..., tuple]] = {}  # see finds_planned_calls_of


def finds_planned_calls_of(function: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorator for a function that finds the planned function which a public op calls, for `explain`.

    It is needed where the arguments of the public op cannot be in the key of a plan. The decorated function takes these
    arguments and returns the planned function and its arguments.

    Args:
        function: the public op.
    """

    def note(find: Function) -> Function:
        _inner_calls[function] = find
        return find

    return note


def find_planned_call(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Return the planned function that a call of a public op makes, or the op itself, and its args and kwargs."""
    if function not in _inner_calls:
        return function, args, kwargs
    inner, args = _inner_calls[function](*args, **kwargs)
    return inner, args, {}


def has_plan(owner: object, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Return True if a call with these arguments would run a plan.

    Args:
        owner: public function or Op that is called.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    key = (*args, *kwargs.values(), tuple(kwargs)) if kwargs else args
    return _module is not None and _module.plans_state(getattr(owner, "__wrapped__", owner), *key) == "ready"


@contextmanager
def suspended() -> Iterator[None]:
    """Switch plans off in all threads inside a block that changes how ops compute, or observes their native calls."""
    if _module is None or torch.compiler.is_compiling():
        yield
        return
    _module.plans_suspend(1)
    try:
        yield
    finally:
        _module.plans_suspend(-1)


def count_runs() -> int:
    """Return the number of plans that this thread has run."""
    return 0 if _module is None else _module.plans_statistics()[2]


def clear() -> None:
    """Drop the plans of this thread."""
    if _module is not None:
        _module.plans_clear()


def drop_packed_weights() -> None:
    """Drop the packed weights that the plans of this thread hold. The plans look them up again."""
    if _module is not None:
        _module.plans_drop_packed()


class _Observer(threading.local):
    """The packed weights that the current thread has used since the recording of a call began, None outside of it."""

    uses: list[tuple] | None = None


_observer = _Observer()


@contextmanager
def _observe_packed_weights(uses: list[tuple]) -> Iterator[None]:
    """Append (weight, entry, refresh) to `uses` for each packed weight that this thread uses inside the block."""
    _observer.uses = uses
    try:
        yield
    finally:
        _observer.uses = None


def note_packed_weight(weight: Tensor, entry: tuple[Tensor, Tensor], refresh: Callable) -> None:
    """Note the use of a packed weight, if this thread records a call.

    Args:
        weight: the weight.
        entry: copy of the weight, packed weight.
        refresh: refresh(weight) returns the entry for the bytes that the weight has when it is called.
    """
    if _observer.uses is not None:
        _observer.uses.append((weight, entry, refresh))


class _NativeCalls(list):
    """Recorded native calls, copies and casts.

    Attributes:
        has_effects: whether one of them, or a function of torch that a plan cannot repeat, was called outside of the
            functions that function_plans notes. A plan that lists functions would omit it.
    """

    has_effects = False

    def append(self, call: tuple) -> None:
        """Append a call."""
        self.note_effect()
        super().append(call)

    def note_effect(self) -> None:
        """Note that something is called that may write to memory."""
        self.has_effects |= not function_plans.is_inside_noted_function()


class _Allocations(TorchFunctionMode):
    """Collect the tensors that torch allocates inside the `with` block, and record its copies and casts.

    Attributes:
        tensors: allocated tensors. They stay alive so that their addresses stay distinct.
        others: names of the functions of torch that a plan cannot repeat.
        sources: tensors of which `contiguous` made copies, by the addresses of the copies.
    """

    def __init__(self, calls: _NativeCalls, results: list):
        super().__init__()
        self.tensors: list[Tensor] = []
        self.others: set[str] = set()
        self.sources: dict[int, Tensor] = {}
        self.calls, self.results = calls, results

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _ALLOCATIONS:
            self.tensors.append(result)
        elif name in _COPIES:
            if result.data_ptr() != args[0].data_ptr():
                self.tensors.append(result)
                self._copy(args[0], result if result.shape == args[0].shape else result.view(args[0].shape))
                if name == "contiguous" and result.is_contiguous():
                    self.sources[result.data_ptr()] = args[0]
        elif name == "stack" and len(args) == 2 and not kwargs:
            self.tensors.append(result)
            for source, target in zip(args[0], result.unbind(args[1]), strict=True):
                self._copy(source, target)
        elif name == "cat" and len(args) == 2 and not kwargs and all(t.dim() == result.dim() for t in args[0]):
            self.tensors.append(result)
            sizes = [t.shape[args[1]] for t in args[0]]
            for source, target in zip(args[0], result.split(sizes, args[1]), strict=True):
                self._copy(source, target)
        elif name == "zeros":
            self.tensors.append(result)
            self.calls.append((_module.plans_fill_zeros, (result.data_ptr(), result.nbytes), {}))
            self.results.append(None)
        elif name == "copy_" and isinstance(args[1], Tensor) and args[1].shape == result.shape:
            self._copy(args[1], result)
        elif name == "__getitem__" and next(_tensors(args[1:]), None) is None:
            pass  # a view
        elif name not in _HARMLESS:
            self._note_other(name)
        return result

    def _note_other(self, name: str) -> None:
        """Note that a plan cannot repeat a function."""
        self.others.add(name)
        self.calls.note_effect()

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Record a copy, or a cast if the dtypes differ."""
        addresses, dtypes = (source.data_ptr(), target.data_ptr()), (source.dtype, target.dtype)
        known = dtypes[0] == dtypes[1] or _CAST_CODES.keys() >= set(dtypes)
        if not known or source.is_neg() or not (source.is_cpu and target.is_cpu):
            self._note_other("copy_")
            return
        layouts = tuple(source.shape), source.stride(), target.stride()
        if dtypes[0] == dtypes[1]:
            self.calls.append((_module.plans_copy_strided, (*addresses, source.element_size(), *layouts), {}))
        else:
            codes = tuple(_CAST_CODES[dtype] for dtype in dtypes)
            self.calls.append((_module.plans_cast_strided, (*addresses, *codes, *layouts), {}))
        self.results.append(None)


def record(function: Callable[..., Any], owner: object, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run a call by its Python code, store its plan or that it has none, and return its result.

    Args:
        function: computes the result from the arguments.
        owner: the Op, Backend or function that the plan belongs to.
        args: positional arguments with tensors among them.
        kwargs: keyword arguments.
    """
    key = (*args, *kwargs.values(), tuple(kwargs)) if kwargs else args
    tensors = list(_tensors(key))
    if _overlap(tensors):  # an address could belong to two inputs; a later call of the key is recorded
        return function(*args, **kwargs)
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if tensors[0].is_cuda:
        has_plan = gpu_plans_enabled and not tracked
        return _record_on_gpu(partial(function, *args, **kwargs), owner, key, tensors if has_plan else None)
    if tracked:
        with function_plans.observe_functions(_module) as calls:
            result = function(*args, **kwargs)
        _module.plans_set(function_plans.describe_calls(calls, tensors, result), owner, *key)
        return result
    before = _module.plans_recording(True)
    description = None
    try:
        names, count = tuple(kwargs), len(args)

        def call(*values):
            return function(*values[:count], **dict(zip(names, values[count:], strict=False)))

        result, description = _describe(call, key)
        if description is not None and not _agrees(call, description, owner, key):
            description = None
    finally:
        _module.plans_recording(before)
    _module.plans_set(description, owner, *key)
    return result


def _record_on_gpu(call: Callable[[], Any], owner: object, key: tuple, tensors: list[Tensor] | None) -> Any:
    """Run a call on a GPU, store its plan or that it has none, and return its result.

    Args:
        call: makes the call.
        owner: see record.
        key: arguments of the call.
        tensors: the tensors among the arguments, None for a call that gets no plan.
    """
    before, description = _module.plans_recording(True), None
    try:
        result, description = (call(), None) if tensors is None else gpu_plans.record(call, tensors)
    finally:
        _module.plans_recording(before)
    _module.plans_set(description, owner, *key)
    return result


def _describe(function: Callable[..., Any], args: tuple) -> tuple[Any, dict[str, Any] | None]:
    """Return the result of a call and the description of its plan, which is None if the call has no plan."""
    tensors = list(_tensors(args))
    if sum(t.nbytes for t in tensors) > MAX_BYTES or any(map(_is_expanded, tensors)):
        return function(*args), None
    calls = _NativeCalls()
    packed: list[tuple] = []
    results: list = []
    with (
        function_plans.observe_functions(_module) as functions,
        native.record_calls(calls, results),
        native.private_workspaces() as spaces,
        _observe_packed_weights(packed),
        _Allocations(calls, results) as allocations,
    ):
        result = function(*args)
    if allocations.others:
        return result, None if calls.has_effects else function_plans.describe_calls(functions, tensors, result)
    try:
        return result, _Describer(tensors, allocations, spaces, packed, result).describe(calls, results)
    except PlanRefusedError:
        return result, None


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among nested arguments, in the order in which the native key of a call lists them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first byte of a tensor and of the byte after its last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size() if tensor.numel() else begin


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _overlap(tensors: list[Tensor]) -> bool:
    """Return whether two of the tensors share memory."""
    extents = sorted(_extent(t) for t in tensors if t.numel())
    return any(first[1] > second[0] for first, second in itertools.pairwise(extents))


class _Describer:
    """Turn the recorded native calls of an op into the description that `plans_set` takes."""

    def __init__(self, inputs, allocations, spaces, packed, result):
        self.result, allocated = result, allocations.tensors
        outputs: list[Any] = (
            [result] if isinstance(result, Tensor) else list(result) if isinstance(result, tuple | list) else [0]
        )
        if not all(value is None or isinstance(value, Tensor) for value in outputs):
            raise PlanRefusedError
        self.outputs: list[Tensor] = [t for t in outputs if t is not None]
        places = {t.data_ptr() for t in allocated if t.numel()}
        for t in self.outputs:
            whole = t.untyped_storage().nbytes() == t.nbytes and t.storage_offset() == 0
            if type(t) is not Tensor or (t.numel() and (t.data_ptr() not in places or not whole)):
                raise PlanRefusedError
        filled = [t.data_ptr() for t in self.outputs if t.numel()]
        if len(set(filled)) < len(filled) or not filled:
            raise PlanRefusedError
        self.packed, entries = [], []
        self.copies = {entry[0].data_ptr() for _, entry, _ in packed}
        for weight, entry, refresh in packed:
            if entry[1].is_mkldnn:
                raise PlanRefusedError
            source = allocations.sources.get(weight.data_ptr(), weight)
            weight = source if source.shape == weight.shape else weight
            self.packed.append(_describe_packed(weight, entry[0], refresh, inputs))
            entries.append(entry[1])
        given = {t.data_ptr() for t in (*self.outputs, *spaces, *entries)} | self.copies
        self.temporaries = [t for t in allocated if t.numel() and t.data_ptr() not in given]
        self.places: list[tuple[int, int, str, int]] = []
        for kind, tensors in (
            ("input", inputs), ("output", self.outputs), ("temporary", self.temporaries), ("packed", entries),
        ):  # fmt: skip
            self.places += [(*_extent(t), kind, k) for k, t in enumerate(tensors)]
        self.spaces = [_extent(t) for t in spaces]
        self.workspace = 0

    def describe(self, calls: list[tuple], results: list) -> dict[str, Any]:
        described = []
        for (function, args, _), result in zip(calls, results, strict=True):
            if any(type(value) is int and value in self.copies for value in args):
                continue  # it packed a weight, which find_packed of csrc/core/call_plans.h does in later calls
            sized = len(args) >= 2 and type(args[-1]) is int and type(result) is int
            if sized and result > args[-1]:
                continue  # it only returned the size of the workspace it needs
            nodes = [self.node(value) for value in args[:-1]]
            if sized and nodes[-1][0] == "workspace":
                nodes.append(("constant", result))
            elif args:
                nodes.append(self.node(args[-1]))
            described.append((function, nodes))
        described = _drop_unread_copies(described)
        sizes = [t.untyped_storage().nbytes() for t in self.temporaries]
        offsets, size = _place_temporaries(described, sizes)
        bytes_ = sum(t.nbytes for t in self.outputs), size + self.workspace
        if not described or bytes_[0] > MAX_BYTES or bytes_[1] > MAX_SCRATCH_BYTES:
            raise PlanRefusedError
        single = isinstance(self.result, Tensor)
        values = [self.result] if single else self.result
        indices = iter(range(len(self.outputs)))
        return {
            "calls": described,
            "outputs": [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in self.outputs],
            "temporaries": offsets,
            "temporary_bytes": size,
            "packed": self.packed,
            "workspace": self.workspace,
            "result": 0 if single else 1 if isinstance(self.result, tuple) else 2,
            "results": [-1 if value is None else next(indices) for value in values],
        }

    def node(self, value: Any) -> tuple:
        """Describe an argument of a native function.

        Raises:
            PlanRefusedError: The argument holds or may be an address of other memory than that of the call. Addresses
                are not larger than other integers everywhere: the heap may begin after the code of the interpreter.
        """
        if isinstance(value, tuple | list):
            return "sequence", value, [self.node(item) for item in value]
        if type(value).__name__ not in _CONSTANTS:
            raise PlanRefusedError
        if type(value) is not int or value < MIN_ADDRESS:
            return "constant", value
        for begin, end, kind, index in self.places:
            if begin <= value < end:
                return kind, index, value - begin
        for begin, end in self.spaces:
            if begin <= value < end:
                self.workspace = max(self.workspace, end - begin)
                return "workspace", 0, value - begin
        raise PlanRefusedError


def _drop_unread_copies(calls: list[tuple]) -> list[tuple]:
    """Return the calls without copies to temporaries that no call reads, such as weights copied before the packing."""
    counts = Counter(node[:2] for _, nodes in calls for node in _walk(nodes) if node[0] == "temporary")

    def is_unread(function: Callable, nodes: list[tuple]) -> bool:
        return function == _module.plans_copy_strided and nodes[1][0] == "temporary" and counts[nodes[1][:2]] == 1

    return [call for call in calls if not is_unread(*call)]


def _place_temporaries(calls: list[tuple], sizes: list[int]) -> tuple[list[int], int]:
    """Return offsets of temporaries in the scratch memory, and the size of all, in bytes.

    A temporary reuses the memory of others that are no longer read.

    Args:
        calls: pairs of a native function and the nodes of its arguments.
        sizes: bytes of each temporary.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, (_, nodes) in enumerate(calls):
        for node in _walk(nodes):
            if node[0] == "temporary":
                first.setdefault(node[1], k)
                last[node[1]] = k
    offsets, end = [0] * len(sizes), 0
    placed: list[tuple[int, int, int]] = []  # (offset, end, last call) of the temporaries that later calls may read
    for index, begin in sorted(first.items(), key=lambda item: item[1]):
        placed = sorted(p for p in placed if p[2] >= begin)
        offset = 0
        for other, other_end, _ in placed:
            if offset + sizes[index] <= other:
                break
            offset = max(offset, -(-other_end // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
        placed.append((offset, offset + sizes[index], last[index]))
        end = max(end, -(-(offset + sizes[index]) // ALIGNMENT) * ALIGNMENT)
    return offsets, end


def _walk(nodes: list[tuple]) -> Iterator[tuple]:
    """Yield nodes and the nodes inside of them."""
    for node in nodes:
        yield node
        if node[0] == "sequence":
            yield from _walk(node[2])


def _describe_packed(weight: Tensor, copy: Tensor, refresh: Callable, inputs: list[Tensor]) -> tuple:
    """Describe where the bytes of a packed weight stand: (input, offset, rows, row bytes, row step, refresh).

    Args:
        weight: the weight, which is an input, or some outputs or channels of one.
        copy: copy of the weight.
        refresh: refresh(weight) returns the entry for the bytes that the weight has when it is called.
        inputs: the tensors among the arguments of the call.

    Raises:
        PlanRefusedError: the bytes cannot be compared.
    """
    whole = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    for k, t in enumerate(inputs):
        if whole and _is_same(t, weight):
            return k, 0, 1, copy.nbytes, 0, refresh
        offset = weight.data_ptr() - t.data_ptr()
        if whole and _is_slice_of(weight, t, 0):
            return k, offset, 1, copy.nbytes, 0, _make_refresh_of_slice(refresh, weight, t, 0)
        if t.dim() == 4 and t.is_contiguous() and _is_slice_of(weight, t, 1):
            rows, step = weight.shape[0], t.stride(0) * t.element_size()
            return k, offset, rows, copy.nbytes // rows, step, _make_refresh_of_slice(refresh, weight, t, 1)
    raise PlanRefusedError


def _is_slice_of(part: Tensor, tensor: Tensor, dim: int) -> bool:
    """Return whether a tensor is a view of some indices of dimension `dim` of a tensor."""
    (begin, end), (first, last) = _extent(tensor), _extent(part)
    same = part.dtype == tensor.dtype and part.stride() == tensor.stride() and part.numel() > 0
    fits = part.shape[:dim] == tensor.shape[:dim] and part.shape[dim + 1 :] == tensor.shape[dim + 1 :]
    return same and fits and begin <= first and last <= end


def _make_refresh_of_slice(refresh: Callable, part: Tensor, tensor: Tensor, dim: int) -> Callable:
    """Return the function of a tensor that calls `refresh` with its slice at the place of `part`, see _is_slice_of."""
    begin = (part.data_ptr() - tensor.data_ptr()) // (tensor.stride(dim) * tensor.element_size())
    return partial(
        _refresh_slice, refresh=refresh, index=(slice(None),) * dim + (slice(begin, begin + part.shape[dim]),)
    )


def _refresh_slice(tensor: Tensor, refresh: Callable, index: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    return refresh(tensor[index])


def _is_same(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _agrees(function: Callable[..., Any], description: dict[str, Any], owner: object, args: tuple) -> bool:
    """Return whether a plan gives the bits of the Python code for other values at other addresses."""
    keep = {p[0] for p in description.get("packed", ())}
    for finite in (False, True):
        others = _change_values(args, keep, finite)
        found = _module.plans_try(description, owner, *others)
        if found is not None:  # a plan casts no NaN: the Python code runs such calls
            return _is_equal(found, function(*others))
    return False


def _change_values(args: tuple, keep: set[int], finite: bool) -> tuple:
    """Return arguments with other values at other addresses.

    Args:
        args: nested arguments of a call.
        keep: positions of tensors that stay the same.
        finite: replace NaN and infinities by numbers.
    """
    count = iter(range(1 << 30))

    def change(value: Any) -> Any:
        if isinstance(value, Tensor):
            if next(count) in keep:
                return value
            copy = _reversed_copy(value)
            copy = copy.nan_to_num_() if finite and copy.is_floating_point() else copy
            return copy.requires_grad_(value.requires_grad)
        if isinstance(value, tuple | list):
            return type(value)(change(item) for item in value)
        return value

    return tuple(change(value) for value in args)


def _reversed_copy(tensor: Tensor) -> Tensor:
    """Return the tensor's values in reversed order of all dimensions, at another address with the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return copy.copy_(tensor.detach().flip(tuple(range(tensor.dim())))) if tensor.numel() else copy


def _is_equal(found: Any, expected: Any) -> bool:
    """Return whether two results have the same type, layout and bits."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, Tensor):
        if (found.shape, found.stride(), found.dtype) != (expected.shape, expected.stride(), expected.dtype):
            return False
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
        return bool(torch.equal(found.view(integer), expected.view(integer)))
    if isinstance(found, tuple | list):
        return len(found) == len(expected) and all(map(_is_equal, found, expected))
    return found == expected


native.suspend_plans = suspended
triton_loader.describe_tensors = None if _native is None else _native.describe_tensors
