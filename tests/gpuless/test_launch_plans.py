# SPDX-License-Identifier: Apache-2.0
"""Launch plans pass to CUDA what Triton passes, for random calls of all launchers and without a GPU."""

import contextlib
import inspect
import os
import subprocess
import sys
import threading
from collections import defaultdict

import pytest
import torch
import triton
import triton.language as tl
from fastds.kernels import implicit_gemm, launch_plans, null_op
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

import fastds
from fastds.ops.core import triton_loader
from tests.support.idle_driver import idle_driver
from tests.support.launch_cases import DRAWN, Call, Draw, find_planned_calls, list_launchers

SEEDS = 12
NO_HOOKS = (None, None, None)  # only planned launches pass them


@pytest.fixture(params=["python", "native"])
def description(request, monkeypatch):
    """Describe the tensors of keys in Python or by the native function."""
    describe = launch_plans._describe_nothing if request.param == "python" else triton_loader.describe_tensors
    monkeypatch.setattr(launch_plans, "_describe_tensors", describe)
    return request.param


@pytest.fixture
def driver(request, monkeypatch):
    if "description" not in request.fixturenames:
        monkeypatch.setattr(launch_plans, "_describe_tensors", launch_plans._describe_nothing)
    launch_plans._tables.clear()
    with idle_driver() as active:
        yield active
    launch_plans._tables.clear()


def draw(name, seed, dtype=None):
    """Return the calls of planned launchers of one random call."""
    return find_planned_calls(DRAWN[name](Draw(seed, dtype)))


def launch(driver, call):
    """Make a call and return what it passed to CUDA."""
    driver.take()
    call.launcher(*call.args, **call.kwargs)
    return driver.take()


def launch_unplanned(driver, call):
    return launch(driver, Call(call.launcher.__wrapped__, call.args, call.kwargs))


def check(driver, call, planned=None):
    """Compare what a call passes to CUDA with and without plans.

    Args:
        driver: the idle driver.
        call: the call.
        planned: whether the call must run by a plan, None if it may.
    """
    expected, found = launch_unplanned(driver, call), launch(driver, call)
    assert [one.passed for one in found] == [one.passed for one in expected]
    assert all(one.hooks != NO_HOOKS for one in expected)
    if planned is not None:
        assert all((one.hooks == NO_HOOKS) == planned for one in found)


def copy_tensors(call):
    """Return the same call with copies of the tensors at other addresses of the same alignment."""

    def copy(value):
        if not isinstance(value, torch.Tensor):
            return value
        memory = torch.zeros(2 * value.untyped_storage().nbytes() + 128, dtype=torch.uint8)
        first = (value.data_ptr() - memory.data_ptr()) % 64 + 64
        memory = memory[first:]
        memory = memory[: memory.numel() // 8 * 8].view(value.dtype)
        result = memory.as_strided(value.shape, value.stride(), memory.storage_offset())
        assert (result.data_ptr() - value.data_ptr()) % 16 == 0
        return result

    return Call(call.launcher, tuple(map(copy, call.args)), {k: copy(v) for k, v in call.kwargs.items()})


def test_every_launcher_is_drawn():
    called = {f for name in DRAWN for seed in range(SEEDS) for f, _, _ in draw(name, seed)}
    assert called == {f for _, _, f in list_launchers()}


@pytest.mark.parametrize("name", DRAWN)
def test_planned_launches_equal_those_of_triton(name, description, driver):
    total = 0
    for seed in range(SEEDS):
        for call in draw(name, seed):
            driver.streams[driver.device] = 1000 + seed
            check(driver, call)
            check(driver, call, planned=True)
            check(driver, copy_tensors(call), planned=True)
            total += len(launch(driver, call))
    assert total >= SEEDS // 2


# ---- the key: neighbouring calls, and keys with a part left out


def replace_argument(call, at, value):
    """Return the call with another value of its argument number `at`, counted over positional and named ones."""
    if at < len(call.args):
        return call._replace(args=(*call.args[:at], value, *call.args[at + 1 :]))
    name = list(call.kwargs)[at - len(call.args)]
    return call._replace(kwargs=call.kwargs | {name: value})


def list_variants(call):
    """Yield calls that differ from a call in one property of one tensor."""
    given = (*call.args, *call.kwargs.values())
    tensors = [(at, value) for at, value in enumerate(given) if isinstance(value, torch.Tensor)]
    for at, value in tensors:
        memory = torch.zeros(4 * value.untyped_storage().nbytes() + 256, dtype=torch.uint8).view(value.dtype)
        yield replace_argument(call, at, memory.as_strided(value.shape, value.stride(), 1))  # not aligned
        other = {torch.float32: torch.bfloat16}.get(value.dtype, torch.float32)
        yield replace_argument(call, at, torch.empty_strided(value.shape, value.stride(), dtype=other))
        if value.dim() == 4:
            strides = (value.stride(0) * 2, value.stride(1), *(2 * s for s in value.stride()[2:]))
            yield replace_argument(call, at, torch.empty_strided(value.shape, strides, dtype=value.dtype))
        for source, other in tensors:
            if source != at and (other.shape, other.stride(), other.dtype) == (
                value.shape,
                value.stride(),
                value.dtype,
            ):
                yield replace_argument(call, at, other)


def list_sequence(name, seed):
    """Return calls of one launcher, neighbours and unlike ones, in an order in which plans are stored and found."""
    calls = []
    for base in (*draw(name, seed), *draw(name, seed + 100, torch.float32), *draw(name, seed + 200)):
        for variant in list_variants(base):
            calls += [base, variant, base]
    return calls + calls[::-1]


@pytest.mark.parametrize("name", DRAWN)
def test_neighbouring_calls_have_plans_of_their_own(name, description, driver):
    for seed in range(2):
        for call in list_sequence(name, seed):
            check(driver, call)


SCALES = (1.0, 1, True, 0.0, -0.0, 0, False, 2.5, 2, 16, 3.0)


def list_option_calls():
    """Return calls that differ in options, in None instead of a tensor, or in the length of a vector."""
    x, weight = torch.zeros(1, 4, 8, 8).contiguous(memory_format=torch.channels_last), torch.zeros(16, 4, 1, 1)
    out = torch.zeros(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    named = [{"stride": 1, "shuffle": 2}, {"shuffle": 1, "stride": 2}]
    calls = [Call(null_op.launch, (x, None, out, scale), {}) for scale in (*SCALES, *SCALES[::-1])]
    calls += [Call(null_op.launch, (x, other, out, 2.5), {}) for other in (None, x, None)]
    calls += [Call(implicit_gemm.launch, (x, None, weight, None, None, out), options) for options in named]
    lengths = [torch.zeros(n) for n in (64, 5000)]  # the strides are equal
    return calls + [Call(null_op.launch, (x, None, x, 1.0), {}) for x in (*lengths, *lengths)]


def test_options_have_plans_of_their_own(description, driver):
    for call in list_option_calls() * 2:
        check(driver, call)


def check_devices(driver):
    """Make the same call on two devices."""
    (call,) = draw("implicit_gemm", 1)
    first = driver.device
    functions = defaultdict(set)
    for device in (first, first + 1, first, first + 1):
        driver.device = device
        check(driver, call)
        functions[device].add(launch(driver, call)[0].function)
    assert len(functions[first]) == len(functions[first + 1]) == 1 and functions[first] != functions[first + 1]


def test_devices_have_plans_of_their_own(description, driver):
    check_devices(driver)


def leave_out(part):
    """Return make_key without a part of the key."""
    make_key = launch_plans.make_key

    def make(launcher, device, given, names):
        key = list(make_key(launcher, device, given, names))
        head = {"launcher": key[0], "device": key[1], "names": key[2]}
        kept, at = [value for name, value in head.items() if name != part], 3
        while at < len(key):
            if isinstance(key[at], type):
                entry = {"class": key[at], "value": key[at + 1]}
                if part == "sign of zero" and key[at] is float:
                    entry["value"] = float(key[at + 1])
            else:
                entry = dict(zip(("shape", "strides", "dtype", "alignment"), key[at : at + 4], strict=True))
            kept += [value for name, value in entry.items() if name != part]
            at += len(entry)
        return tuple(kept)

    return make


PARTS = ("launcher", "device", "names", "class", "value", "sign of zero", "shape", "strides", "dtype", "alignment")


@pytest.mark.parametrize("part", PARTS)
def test_a_key_without_a_part_is_detected(part, driver, monkeypatch):
    monkeypatch.setattr(launch_plans, "make_key", leave_out(part))
    with pytest.raises(AssertionError):
        if part == "launcher":  # two launchers with the same tensors
            x, y = (torch.zeros(1, 4, 8, 8).contiguous(memory_format=torch.channels_last) for _ in range(2))
            planned = [launch_plans.planned(f) for f in (launch_once, launch_twice)]
            for function in (*planned, *planned):
                check(driver, Call(function, (x, y), {}))
        elif part == "device":
            check_devices(driver)
        else:
            calls = list_option_calls() * 2
            for call in calls + [call for name in DRAWN for call in list_sequence(name, 0)]:
                check(driver, call)


@triton.jit
def _store(x_ptr, y_ptr, n, BLOCK: tl.constexpr, LAST: tl.constexpr = 7):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


def launch_once(x, y):
    launch_plans.launch_kernel(_store, (1,), x, y, 4, BLOCK=16)


def launch_twice(x, y):
    launch_plans.launch_kernel(_store, (2, 3), x, y, 5, BLOCK=16)
    launch_plans.launch_kernel(_store, (2,), y, x, 5, 16, num_warps=8)


def test_several_launches_and_defaults(driver):
    x, y = torch.zeros(4), torch.zeros(4)
    call = Call(launch_plans.planned(launch_twice), (x, y), {})
    check(driver, call, planned=False)
    check(driver, call, planned=True)


def test_a_tensor_given_twice_has_two_places(driver):
    x, y = torch.zeros(64), torch.zeros(64)
    for other in (x, y, x):  # the first call records a plan in which other is x
        check(driver, Call(null_op.launch, (x, other, torch.zeros(64), 1.0), {}))


def test_native_description_tells_layouts_apart():
    describe = triton_loader.describe_tensors
    x = torch.zeros(2, 8, 4, 4)
    same, memory = torch.zeros(2, 8, 4, 4), torch.zeros(600)
    others = [
        x[:1], x.as_strided((1, 8, 4, 4), (77, 16, 4, 1)), x.contiguous(memory_format=torch.channels_last), x.half(),
        x.bfloat16(), x.to(torch.int32), x.flatten(), memory[1:257].view(2, 8, 4, 4), x.view(2, 8, 16),
        x.as_strided((2, 8, 4, 4), (0, 16, 4, 1)),
    ]  # fmt: skip
    described = [describe((t, None, 1)) for t in (x, *others)]
    assert None not in described and len(set(described)) == len(described)
    assert describe((x,)) == describe(("name", same, 2.5)) == describe((torch.nn.Parameter(same),))
    assert describe((x, others[0])) != describe((others[0], x))
    assert describe((torch.zeros(0),)) is describe((x.to("meta"),)) is None  # described in Python
    assert describe((torch.zeros(2, dtype=torch.complex64).conj().imag,)) is None


# ---- when there are no plans


def launch_refused(x, y):
    launch_plans.launch_kernel(_store, (1,), x, y[:2], 4, BLOCK=16)  # not a tensor of the call


def launch_with_result(x, y):
    launch_plans.launch_kernel(_store, (1,), x, y, 4, BLOCK=16)
    return 1


def launch_with_grid(x, y):
    launch_plans.launch_kernel(_store, lambda options: (1,), x, y, 4, BLOCK=16)


@pytest.mark.parametrize("launcher", [launch_refused, launch_with_result, launch_with_grid])
def test_launchers_that_cannot_be_recorded_run_without_plans(launcher, driver):
    call = Call(launch_plans.planned(launcher), (torch.zeros(4), torch.zeros(4)), {})
    for _ in range(3):
        check(driver, call, planned=False)


def test_subclasses_and_lists_run_without_plans(driver):
    class Subclass(torch.Tensor):
        pass

    x = torch.zeros(64)
    for other in (torch.zeros(64).as_subclass(Subclass), torch.zeros(64)):
        for _ in range(2):
            check(
                driver,
                Call(null_op.launch, (x, other, x, 1.0), {}),
                planned=None if type(other) is torch.Tensor else False,
            )
    (call,) = draw("implicit_gemm", 1)
    options = call.kwargs | {"slope": [0.1]}
    call = call._replace(launcher=launch_plans.planned(lambda x, *_, slope, **__: launch_once(x, x)), kwargs=options)
    for _ in range(2):
        check(driver, call, planned=False)
    assert all(type(value) is not list for key in launch_plans._tables.recent for value in key)


def test_objects_run_without_plans(driver):
    """An object that is hashed by its identity may have changed since."""

    class Options:
        n = 4

    options = Options()
    launcher = launch_plans.planned(lambda x, o: launch_plans.launch_kernel(_store, (1,), x, x, o.n, BLOCK=16))
    for options.n in (4, 4, 5):
        check(driver, Call(launcher, (torch.zeros(4), options), {}), planned=False)


def test_an_error_leaves_no_plan(driver, monkeypatch):
    (call,) = draw("upsample2", 1)
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "_do_compile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call.launcher(*call.args)
    assert not launch_plans._tables.recent and launch_plans._recorder.launches is None
    check(driver, call, planned=False)
    check(driver, call, planned=True)


def watch_run(patch, seen):
    run = JITFunction.run
    patch.setattr(JITFunction, "run", lambda self, *a, **k: (seen.append(1), run(self, *a, **k))[1])


def watch_kernel(patch, seen):
    hook = lambda *_, **__: seen.append(1)  # noqa: E731
    patch.setattr(implicit_gemm._convolution_kernel, "pre_run_hooks", [hook])


def add_hook(name):
    """Return a function that adds a hook to a chain of Triton."""

    def add(patch, seen):
        chain = getattr(triton.knobs.runtime, name)
        patch.setattr(chain, "calls", [seen.append])

    return add


RUNTIME = triton.knobs.runtime
# The functions change a setting by which launches are watched. CUDA's launch function would call the hooks of launches.
WATCHERS = {
    "enter hook": add_hook("launch_enter_hook"),
    "exit hook": add_hook("launch_exit_hook"),
    "function as hook": lambda patch, seen: patch.setattr(RUNTIME, "launch_enter_hook", seen.append),
    "debug": lambda patch, seen: patch.setattr(RUNTIME, "debug", True),
    "instrumentation": lambda patch, seen: patch.setattr(triton.knobs.compilation, "instrumentation_mode", "planted"),
    "inspection": lambda patch, seen: patch.setattr(RUNTIME, "add_stages_inspection_hook", lambda: ("key", "hash")),
    "pre-run hook": watch_kernel,
    "another run": watch_run,
    "torch.compile": lambda patch, seen: patch.setattr(torch.compiler, "is_compiling", lambda: True),
}


@pytest.mark.parametrize("what", WATCHERS)
def test_watched_launches_run_without_plans(what, driver, monkeypatch):
    (call,) = draw("implicit_gemm", 1)
    check(driver, call, planned=False)
    check(driver, call, planned=True)
    seen: list = []
    with monkeypatch.context() as patch:
        WATCHERS[what](patch, seen)
        (one,) = launch(driver, call)
        assert one.hooks != NO_HOOKS
    assert bool(seen) == (what in ("pre-run hook", "another run"))
    check(driver, call, planned=True)


def test_launchers_compute_nothing_else():
    """A plan would leave out what else a launcher does."""

    class NoOperation(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"a launcher calls {func}")

    with idle_driver():
        for name in DRAWN:
            for seed in range(SEEDS):
                for call in draw(name, seed):
                    with NoOperation():
                        assert call.launcher.__wrapped__(*call.args, **call.kwargs) is None
            with pytest.raises(AssertionError, match="a launcher calls"), NoOperation():
                torch.zeros(1)


# ---- stream, device, threads, number of plans


def test_the_stream_is_read_in_every_launch(driver):
    (call,) = draw("implicit_gemm", 2)
    for stream in (5, 5, 6, 7, 5):
        driver.streams[driver.device] = stream
        (one,) = launch(driver, call)
        assert one.stream == stream


def test_kernels_run_on_the_device_of_the_tensor(driver, monkeypatch):
    (call,) = draw("implicit_gemm", 3)
    home, other = driver.device, driver.device + 1
    entered = []

    @contextlib.contextmanager
    def use_device(device):
        entered.append(device)
        driver.device = other
        yield
        driver.device = home

    driver.streams = {home: 11, other: 12}
    (before,) = launch(driver, call)
    monkeypatch.setattr(torch.cuda, "device", use_device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: driver.device)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda _: other)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", other))
    for planned in (False, True):
        entered.clear()
        (one,) = launch(driver, call)
        assert entered and driver.device == home and (one.hooks == NO_HOOKS) == planned
        assert one.stream == 12 and one.function != before.function


def test_number_of_plans_is_bounded(driver, monkeypatch):
    monkeypatch.setattr(launch_plans, "MAX_PLANS", 4)
    often = Call(null_op.launch, (torch.zeros(7), None, torch.zeros(7), 1.0), {})
    launch(driver, often)
    for n in range(100, 140):
        check(driver, Call(null_op.launch, (torch.zeros(n), None, torch.zeros(n), 1.0), {}), planned=False)
        check(driver, often, planned=True)
        assert len(launch_plans._tables.recent) <= 4 and len(launch_plans._tables.older) <= 4
    check(driver, Call(null_op.launch, (torch.zeros(100), None, torch.zeros(100), 1.0), {}), planned=False)


def test_threads_share_plans(driver, monkeypatch):
    monkeypatch.setattr(launch_plans, "MAX_PLANS", 8)
    monkeypatch.setattr(driver, "get_current_stream", lambda device: threading.current_thread().name)
    calls = [
        call for name in ("null_op", "implicit_gemm", "upsample2") for seed in range(6) for call in draw(name, seed)
    ]
    expected = [[one.passed[4:] for one in launch_unplanned(driver, call)] for call in calls]
    interval, errors, found = sys.getswitchinterval(), [], defaultdict(list)

    def run(shift):
        try:
            for k in range(300):
                call = calls[(k * shift) % len(calls)]
                call.launcher(*call.args, **call.kwargs)
        except Exception as error:
            errors.append(error)

    driver.take()
    sys.setswitchinterval(1e-5)
    try:
        threads = {shift: threading.Thread(target=run, args=(shift,)) for shift in (1, 5, 7)}
        for thread in threads.values():
            thread.start()
        for thread in threads.values():
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for one in driver.take():
        found[one.stream].append(one.passed[4:])
    assert not errors
    for shift, thread in threads.items():
        assert found[thread.name] == [p for k in range(300) for p in expected[(k * shift) % len(calls)]]


def test_launches_of_other_threads_are_not_recorded(driver):
    x, y = torch.zeros(4), torch.zeros(4)

    def launch_beside_another_thread(x, y):
        if launch_plans._recorder.launches is not None:
            thread = threading.Thread(target=launch_once, args=(y, x))
            thread.start()
            thread.join()
        launch_once(x, y)

    call = Call(launch_plans.planned(launch_beside_another_thread), (x, y), {})
    assert len(launch(driver, call)) == 2
    check(driver, call, planned=True)


# ---- versions and switches


def test_triton_starts_kernels_as_plans_do():
    """The versions up to launch_plans.LAST_VERSION were read. A newer one needs the same call in JITFunction.run."""
    assert launch_plans.UNAVAILABLE_REASON is None or os.environ.get("FASTDS_PLANS") == "0"
    source = " ".join(inspect.getsource(JITFunction.run).split())
    call = (
        "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
        "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
    )
    assert call in source


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0"])
def test_other_versions_of_triton_run_without_plans(version, driver, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    reason = launch_plans.find_unavailable_reason()
    assert reason == f"launch plans support Triton 3.6 to 3.9, got {version}"
    monkeypatch.setattr(launch_plans, "UNAVAILABLE_REASON", reason)
    assert launch_plans.planned(launch_once) is launch_once


def test_a_run_that_was_replaced_before_is_noticed(monkeypatch):
    monkeypatch.setattr(launch_plans, "_RUN", lambda *args, **kwargs: None)
    assert launch_plans.find_unavailable_reason() == "JITFunction.run of Triton is another function"


@pytest.mark.parametrize("variable", ["FASTDS_PLANS=0", "TRITON_INTERPRET=1"])
def test_plans_are_switched_off(variable):
    code = (
        "from fastds.kernels import null_op, launch_plans; print(hasattr(null_op.launch, '__wrapped__'));"
        "print(launch_plans.UNAVAILABLE_REASON)"
    )
    environment = os.environ | dict([variable.split("=")])
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = {"FASTDS_PLANS=0": "FASTDS_PLANS=0", "TRITON_INTERPRET=1": "Triton interprets its kernels"}
    assert run.stdout.split("\n")[:2] == ["False", expected[variable]]


def test_explain_states_why_there_are_no_plans(fake_cuda, monkeypatch):
    x = torch.zeros(1, 24, 8, 8, device="cuda", dtype=torch.bfloat16)
    arguments = (x, x, x, torch.zeros(96, 48, 3, 3, device="cuda", dtype=torch.bfloat16))
    assert "launch plans" not in fastds.explain("conv_lstm_cell", *arguments)
    monkeypatch.setattr(triton_loader.load_kernels("launch_plans"), "UNAVAILABLE_REASON", "planted")
    assert fastds.explain("conv_lstm_cell", *arguments)["launch plans"] == "none: planted"


def test_a_compiled_kernel_is_launched(driver, monkeypatch):
    """With Triton's own compiler in place of kernels without machine code."""
    monkeypatch.undo()
    with idle_driver(compiles=True) as active:
        call = Call(null_op.launch, (torch.zeros(3000), None, torch.zeros(3000), 2.0), {})
        check(active, call, planned=False)
        check(active, call, planned=True)
        assert launch(active, call)[0].grid == (3, 1, 1)


def test_benchmark_of_launchers(monkeypatch):
    from bench import launches

    monkeypatch.setattr(launches, "time_calls", lambda runs: [float(run() is None) for run in runs])
    rows = launches.time_launchers()
    assert [row["name"] for row in rows] == list(DRAWN)
    assert all(row["kernels"] >= 1 and row["tensors"] >= 2 and row["times"] == [1.0, 1.0] for row in rows)
