# SPDX-License-Identifier: Apache-2.0
"""Launch plans: launches of kernels without the Python code that prepares them.

A launcher selects the tiles of a kernel and computes its grid, strides and constants. Triton then binds and specializes
the arguments. Both are done in Python and take longer than a small kernel. The first call of a launcher with a key runs
this code and records the launches: compiled kernels, grids, numbers, and which arguments are tensors of the call. Later
calls with the key pass their tensors to the same compiled kernels.

The key has all that launchers and Triton depend on: the launcher and the current device; the shape, strides, dtype and
alignment of each tensor; the class and value of each other argument. The stream is read in every call. Calls run
without plans while anything watches launches or changes how kernels are compiled: hooks, debugging and instrumentation
of Triton, torch.compile, or another function in place of JITFunction.run. The same holds for tensors of other classes,
for Triton's interpreter, and for versions of Triton in which JITFunction.run has not been read.

The environment variable FASTDS_PLANS=0 switches plans off. A plan does not check, as Triton does in every launch, that
the global variables which a kernel read when it was compiled are unchanged.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

# In these versions JITFunction.run starts a compiled kernel by the call that _Launch.start makes.
FIRST_VERSION, LAST_VERSION = (3, 6), (3, 9)
MAX_PLANS = 1024  # of each of the two tables
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))  # other subclasses may override operations
_NUMBERS = frozenset((type(None), bool, int, float, str))  # classes of kernel arguments other than tensors
_OPTIONS = _NUMBERS | {torch.dtype}
_RUN = JITFunction.run

Launcher = TypeVar("Launcher", bound=Callable[..., None])


class _Launch(NamedTuple):
    """One launch of a plan.

    Attributes:
        kernel: the Triton function, which may get hooks later.
        compiled: the compiled kernel. It unloads the machine code when it is freed.
        run: launcher of the driver.
        grid: numbers of programs along three axes.
        function: handle of the machine code.
        metadata: packed metadata of the compiled kernel.
        constants: arguments of the kernel other than tensors.
        select: selects the kernel's arguments from the arguments of the call followed by `constants`.
    """

    kernel: JITFunction
    compiled: CompiledKernel
    run: Callable
    grid: tuple[int, int, int]
    function: int
    metadata: Any
    constants: tuple
    select: Callable

    def start(self, given: tuple, stream: int) -> None:
        """Launch the kernel on the arguments of a call."""
        arguments = self.select((*given, *self.constants))
        self.run(*self.grid, stream, self.function, self.metadata, None, None, None, *arguments)


def find_unavailable_reason() -> str | None:
    """Return the reason why there are no launch plans in this process, or None."""
    if os.environ.get("FASTDS_PLANS") == "0":
        return "FASTDS_PLANS=0"
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if not FIRST_VERSION <= version <= LAST_VERSION:
        first, last = (".".join(map(str, v)) for v in (FIRST_VERSION, LAST_VERSION))
        return f"launch plans support Triton {first} to {last}, got {triton.__version__}"
    if not _RUN.__code__.co_filename.endswith("jit.py"):
        return "JITFunction.run of Triton is another function"
    return "Triton interprets its kernels" if triton.knobs.runtime.interpret else None


UNAVAILABLE_REASON = find_unavailable_reason()


class _Tables:
    """Plans by key: the recently stored plans, and older ones, of which those not used again are dropped.

    A plan is the list of its launches. None in place of a plan: calls with the key run without one.

    Attributes:
        recent: at most MAX_PLANS plans. Readers need no lock.
        older: the plans before them.
    """

    def __init__(self):
        self.recent: dict[tuple, tuple[_Launch, ...] | None] = {}
        self.older: dict[tuple, tuple[_Launch, ...] | None] = {}
        self.lock = threading.Lock()

    def store(self, key: tuple, plan: tuple[_Launch, ...] | None) -> None:
        """Store a plan."""
        with self.lock:
            if len(self.recent) >= MAX_PLANS:
                self.recent, self.older = {}, self.recent
            self.recent[key] = plan

    def renew(self, key: tuple) -> bool:
        """Store an older plan as a recent one. Return False if there is no plan and not None in its place."""
        try:
            self.store(key, self.older[key])
        except KeyError:
            return key in self.recent
        return True

    def clear(self) -> None:
        """Drop all plans."""
        with self.lock:
            self.recent, self.older = {}, {}


class _Recorder(threading.local):
    """The launches that this thread has made since the recording of a call began, None outside of it."""

    launches: list[tuple] | None = None


class _Observer(threading.local):
    """What is called in place of the launchers in this thread, None outside of observe_launchers."""

    run: Callable[[Callable, tuple, dict], None] | None = None


def _describe_nothing(given: tuple) -> None:
    """Take the place of the native function where there is none."""


_describe_tensors: Callable[[tuple], bytes | None] = _describe_nothing
_observer = _Observer()
_tables = _Tables()
_recorder = _Recorder()


def planned(launcher: Launcher) -> Launcher:
    """Decorator for launchers: run the plan of a call if there is one, else the launcher.

    A launcher calls launch_kernel and no function of torch that computes or allocates. Its first argument is a tensor
    on the device of the kernels. It does not depend on the values of tensors, on their identity, on tensors inside of
    other arguments, or on global variables that change.
    """
    if UNAVAILABLE_REASON is not None:
        return launcher

    @functools.wraps(launcher)
    def launch(*args, **kwargs):
        if _observer.run is not None:
            return _call_observer(launch, args, kwargs)
        if is_watched():
            return launcher(*args, **kwargs)
        active = driver.active
        device = active.get_current_device()
        if args[0].get_device() != device and args[0].device.type == "cuda":
            with torch.cuda.device(args[0].device):
                return launch(*args, **kwargs)
        given = (*args, *kwargs.values()) if kwargs else args
        key = make_key(launcher, device, given, tuple(kwargs))
        try:
            plan = _tables.recent.get(key)
        except TypeError:  # an argument is a list
            return launcher(*args, **kwargs)
        if plan is None:
            if not _tables.renew(key):
                return _record(launcher, key, args, kwargs)
            plan = _tables.recent.get(key)
        if plan is None or _have_hooks(plan):
            return launcher(*args, **kwargs)
        stream = active.get_current_stream(device)
        for one in plan:
            one.start(given, stream)

    return cast(Launcher, launch)


@contextlib.contextmanager
def observe_launchers(run: Callable[[Callable, tuple, dict], None]) -> Iterator[None]:
    """Call run(launcher, args, kwargs) in place of the launchers that this thread calls inside the block.

    Args:
        run: calls the launcher.
    """
    before, _observer.run = _observer.run, run
    try:
        yield
    finally:
        _observer.run = before


def _call_observer(launcher: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    run, _observer.run = _observer.run, None
    try:
        cast(Callable, run)(launcher, args, kwargs)
    finally:
        _observer.run = run


def launch_kernel(kernel, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a Triton function, and note the launch if this thread records a call.

    Args:
        kernel: the Triton function.
        grid: numbers of programs along one to three axes.
        *args: positional arguments of the kernel.
        **options: keyword arguments of the kernel and options of Triton.
    """
    compiled = kernel[grid](*args, **options)
    if _recorder.launches is not None:
        _recorder.launches.append((kernel, compiled, grid, args, options))


def is_watched() -> bool:
    """Return True if something watches launches or changes how kernels are compiled."""
    runtime = triton.knobs.runtime
    return (
        JITFunction.run is not _RUN
        or _has_calls(runtime.launch_enter_hook)
        or _has_calls(runtime.launch_exit_hook)
        or runtime.add_stages_inspection_hook is not None
        or bool(runtime.debug)
        or triton.knobs.compilation.instrumentation_mode != ""
        or torch.compiler.is_compiling()
    )


def use_native_description(describe: Callable[[tuple], bytes | None]) -> None:
    """Let a native function describe the tensors of keys, which is faster.

    Args:
        describe: function of the arguments of a call. It returns device, dtype, shape, strides and alignment of the
            tensors among them, or None if it cannot.
    """
    global _describe_tensors
    _describe_tensors = describe


def _have_hooks(plan: tuple[_Launch, ...]) -> bool:
    """Return True if one of the Triton functions has hooks that run before its launches."""
    for launch in plan:  # noqa: SIM110  a generator takes longer
        if launch.kernel.pre_run_hooks:
            return True
    return False


def _has_calls(hook: Any) -> bool:
    """Return True if a hook is set: a function, or a chain with at least one function."""
    return hook is not None and bool(getattr(hook, "calls", True))


def make_key(launcher: Callable, device: int, given: tuple, names: tuple[str, ...]) -> tuple:
    """Return the key of a call.

    Args:
        launcher: function that launches kernels.
        device: index of the current device.
        given: arguments of the call.
        names: names of the last arguments.
    """
    if (layouts := _describe_tensors(given)) is not None:
        # True, 1 and 1.0 are equal, and so are 0.0 and -0.0.
        others = [v if v or type(v) is not float else str(v) for v in given if type(v) not in _TENSORS]
        return launcher, device, names, layouts, *map(type, given), *others
    key: list = [launcher, device, names]
    for value in given:
        kind = type(value)
        if kind in _TENSORS:
            key += (value.shape, value.stride(), value.dtype, value.data_ptr() & 15)
        elif kind is float and value == 0.0:
            key += (kind, str(value))
        else:
            key += (kind, value)
    return tuple(key)


def _record(launcher: Callable, key: tuple, args: tuple, kwargs: dict[str, Any]) -> None:
    """Run a launcher and store the plan of the call, or that it has none."""
    if not all(map(_is_plain, (*args, *kwargs.values()))) or torch._C._len_torch_dispatch_stack() > 0:
        launcher(*args, **kwargs)
        return
    # The arguments of kernels are found by their identity, and a tensor may be given twice.
    separate = [_separate(value) for value in args]
    separate_options = {name: _separate(value) for name, value in kwargs.items()}
    before, _recorder.launches = _recorder.launches, []
    try:
        result: Any = launcher(*separate, **separate_options)
        given = (*separate, *separate_options.values())
        plan = tuple(_describe_launch(given, *launch) for launch in _recorder.launches)
    finally:
        _recorder.launches = before
    _tables.store(key, None if result is not None or None in plan else cast(tuple[_Launch, ...], plan))


def _separate(value: Any) -> Any:
    """Return another tensor object with the same memory, or a value that is no tensor."""
    return value.detach() if type(value) in _TENSORS else value


def _is_plain(value: Any) -> bool:
    """Return True if an argument is a tensor of torch, a number, a string or a dtype, or a tuple of numbers."""
    kind = type(value)
    return kind in _TENSORS or kind in _OPTIONS or (isinstance(value, tuple) and all(map(_is_plain_option, value)))


def _is_plain_option(value: Any) -> bool:
    return type(value) in _OPTIONS or (isinstance(value, tuple) and all(map(_is_plain_option, value)))


def _describe_launch(given: tuple, kernel, compiled, grid, args: tuple, options: dict[str, Any]) -> _Launch | None:
    """Return a launch that can be repeated, or None.

    Args:
        given: arguments of the call, whose tensors are distinct objects.
        kernel: see launch_kernel.
        compiled: what kernel[grid] returned.
        grid: see launch_kernel.
        args: see launch_kernel.
        options: see launch_kernel.
    """
    if type(kernel) is not JITFunction or not isinstance(compiled, CompiledKernel):
        return None
    if compiled.metadata.target.backend != "cuda" or type(grid) is not tuple:
        return None
    parameters = kernel.signature.parameters
    bound = kernel.signature.bind(*args, **{name: value for name, value in options.items() if name in parameters})
    bound.apply_defaults()
    positions = {id(value): k for k, value in enumerate(given) if type(value) in _TENSORS}
    places: list[int] = []
    constants: list[Any] = []
    for value in bound.arguments.values():
        if type(value) in _NUMBERS:
            places.append(len(given) + len(constants))
            constants.append(value)
        elif id(value) in positions:
            places.append(positions[id(value)])
        else:
            return None
    size = (*grid, 1, 1)[:3]
    select = itemgetter(*places)
    return _Launch(
        kernel, compiled, compiled.run, size, compiled.function, compiled.packed_metadata, tuple(constants), select
    )
