# SPDX-License-Identifier: Apache-2.0
"""Tests of call plans: results have the same bits as without plans, and no plan runs if torch observes a call."""

import gc
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastds
from fastds import ops
from fastds.ops.core import native, packed_weight_cache, plans
from fastds.ops.core.registry import OPS
from fastds.ops.impl.conv3x3.algorithm import assume_height
from fastds.ops.impl.inr_query.points import GridSpec, from_index

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
CHANNELS = 8


@pytest.fixture(autouse=True)
def empty_table():
    """Start each test without plans, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plans.clear()
    yield
    plans.clear()
    torch.set_num_threads(threads)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_planned(call, *tensors):
    """Return the result of a call, and whether it ran by a plan."""
    before = plans.count_runs()
    return call(*tensors), plans.count_runs() > before


def check(call, *tensors, planned: bool = True):
    """Compare a call with the Python code to the bit."""
    with plans.suspended():
        expected = call(*tensors)
    found, by_plan = run_planned(call, *tensors)
    assert by_plan == planned
    for a, b in zip([found] if isinstance(found, torch.Tensor) else found,
                    [expected] if isinstance(expected, torch.Tensor) else expected, strict=True):  # fmt: skip
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def convolve(x, weight):
    return ops.conv3x3(x, weight, activation="relu", algorithm="winograd")


def record(call, *tensors):
    """Make the two calls after which a plan exists."""
    for _ in range(2):
        call(*tensors)
    assert run_planned(call, *tensors)[1]


def test_third_call_of_a_key_runs_a_plan():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    assert [run_planned(convolve, x, weight)[1] for _ in range(4)] == [False, False, True, True]
    for seed in range(3):
        check(convolve, draw(1, CHANNELS, 9, 7, seed=seed), weight)


def test_new_outputs_each_time():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    first, second = ops.lstm_gates(x, c), ops.lstm_gates(x + 1, c)
    assert first[0].data_ptr() != second[0].data_ptr() and not torch.equal(first[0], second[0])


@pytest.mark.parametrize("change", ["in place", "data", "new address", "storage"])
def test_changed_weights_are_packed_again(change):
    x, weight = draw(1, CHANNELS, 9, 7), torch.nn.Parameter(draw(CHANNELS, CHANNELS, 3, 3), requires_grad=False)
    record(convolve, x, weight)
    for seed in (5, 6):
        new = draw(CHANNELS, CHANNELS, 3, 3, seed=seed)
        if change == "in place":
            weight.copy_(new)
        elif change == "data":
            weight.data = new
        elif change == "storage":
            weight.untyped_storage().copy_(new.untyped_storage())
        else:
            weight = new
        with plans.suspended():  # another address, since this call must not pack the weight that the plan reads
            expected = convolve(x, new.clone())
        found, by_plan = run_planned(convolve, x, weight)
        assert by_plan and torch.equal(found, expected)


def test_many_weights_are_packed_by_plans():
    """The weights have more bytes than plans may hold; every call still runs its plan."""
    x, weights = draw(1, 256, 4, 4), draw(60, 256, 256, 3, 3)
    record(convolve, x, weights[0])
    for weight in weights:
        found, by_plan = run_planned(convolve, x, weight)
        with plans.suspended():
            expected = convolve(x, weight.clone())
        assert by_plan and torch.equal(found, expected)


def test_full_cache_of_packed_weights_keeps_plans(monkeypatch):
    """Eviction drops packed weights, not plans: each call with a changed weight runs its plan."""
    monkeypatch.setattr(packed_weight_cache, "MAX_CACHE_BYTES", 1)
    gates = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(ops.lstm_gates, *gates)
    record(convolve, x, weight)
    for _ in range(3):
        weight.neg_()
        with plans.suspended():
            expected = convolve(x, weight.clone())
        found, by_plan = run_planned(convolve, x, weight)
        assert by_plan and torch.equal(found, expected)
    assert run_planned(ops.lstm_gates, *gates)[1]


class Functions(TorchFunctionMode):
    """A function mode that changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    """A dispatch mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


BLOCKS = {
    "backend": lambda: fastds.use_backend("reference"),
    "function mode": Functions,
    "dispatch mode": Dispatches,
    "deterministic": deterministic,
    "convolution": lambda: fastds.use_conv_algorithm("planes"),
    "assume_height": lambda: assume_height(999),
    "record_calls": lambda: native.record_calls([]),
    "profiler": torch.profiler.profile,
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_no_plan_inside(block):
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(ops.conv3x3, x, weight) if native.get_module().isa() != "baseline" else pytest.skip("no plan")
    with block():
        assert not run_planned(ops.conv3x3, x, weight)[1]
    assert run_planned(ops.conv3x3, x, weight)[1]


def test_no_plan_for_observed_tensors():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    before = plans.count_runs()
    torch.func.vmap(ops.lstm_gates)(x[None], c[None])
    torch.func.vmap(lambda t: ops.lstm_gates(x, c)[0] + t)(x[None, :, :CHANNELS])
    torch.func.jvp(ops.lstm_gates, (x, c), (x, c))
    ops.lstm_gates(x.to("meta"), c.to("meta"))
    torch.jit.trace(ops.lstm_gates, (x, c), check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        ops.lstm_gates(x, c)
    assert plans.count_runs() == before


def test_gradients_are_those_without_plans():
    x, c = draw(1, 4 * CHANNELS, 5, 6).requires_grad_(), draw(1, CHANNELS, 5, 6).requires_grad_()

    def step():
        h, new = ops.lstm_gates(x, c)
        return torch.autograd.grad((h * h).sum() + new.sum(), (x, c))

    with plans.suspended():
        expected = step()
    before = plans.count_runs()
    for _ in range(4):
        assert all(map(torch.equal, step(), expected))
    assert plans.count_runs() > before


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x[:, :, ::2],
        lambda x: x.to(torch.bfloat16),
        lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        lambda x: x[:1, :, :1, :1].expand(x.shape),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.cat([x, x]),
        lambda x: x[:, :, :3],
    ],
    ids=["strides", "dtype", "alignment", "negative", "expanded", "channels_last", "batch", "rows"],
)
def test_other_tensors_are_other_keys(other):
    x = draw(1, 4 * CHANNELS, 6, 6)
    record(lambda t: ops.pixel_shuffle(t, 2), x)
    changed = other(x)
    with plans.suspended():
        expected = ops.pixel_shuffle(changed, 2)
    for k in range(4):
        found, planned = run_planned(ops.pixel_shuffle, changed, 2)
        assert torch.equal(found, expected) and not (planned and k == 0)


def test_negated_tensors_have_no_plan():
    values = draw(1, CHANNELS, 6, 6)
    x, negated = torch.complex(values, values).imag, torch.complex(values, -values).conj().imag
    assert x.stride() == negated.stride() and negated.is_neg()
    record(ops.null_op, x)
    check(ops.null_op, negated, planned=False)


def test_other_values_and_types_of_options_are_other_keys():
    def shuffle(x, option):
        return ops.pixel_shuffle.__wrapped__(x, 2)  # which runs no plan by itself

    public, x = plans.planned(shuffle), draw(1, 4, 3, 3)
    for option in (1, True, 1.0, "1", (1,), [1], None, 2, 0, False, 0.0, -0.0, (1, 2), (1, (2,)), torch.float32):
        assert [run_planned(public, x, option)[1] for _ in range(3)] == [False, False, True]
    assert not run_planned(lambda t: public(t, option=1), x)[1]


def test_ops_have_their_own_plans():
    tensors = [draw(1, CHANNELS, 5, 5, seed=k) for k in range(3)]
    record(ops.gru_reset, *tensors)
    check(ops.gru_update, *tensors, planned=False)


DEVICES = """
import ctypes, torch
from fastds.ops.core import native

class Description(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("dtype", ctypes.c_uint32), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64)]

DEVICE, SIZE, STRIDE = [1, 0], (ctypes.c_int64 * 1)(3), (ctypes.c_int64 * 1)(1)
Describe = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Description))

@Describe
def describe(address, out):
    out[0] = Description(1 << 24, tuple(DEVICE), 1, 32 << 8 | 2, SIZE, STRIDE, 0)
    return 0

class Table(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32 * 2), ("older", ctypes.c_void_p), ("unused", ctypes.c_void_p * 3),
                ("describe", Describe), ("stream", ctypes.c_void_p)]

class FakeTensor:
    requires_grad = False

table = Table((1, 3), None, (None, None, None), describe, None)
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name = ctypes.c_char_p(b"dlpack_exchange_api")
FakeTensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), name, None)
module, observed = native.get_module(), type("Module", (), {"_is_profiler_enabled": False, "_current_level": -1})
module.plans_initialize({
    "Tensor": FakeTensor, "Parameter": FakeTensor, "dtype": torch.dtype, "grad_enabled": bool, "num_threads": int,
    "dispatch_modes": int, "function_modes": int, "functorch": bool, "tracing": bool, "any_autocast_enabled": bool,
    "autocast_enabled": None, "autocast_dtype": None, "autocast_cache_enabled": None, "deterministic": bool,
    "onednn_enabled": lambda: True, "cublas_tf32": bool,
    "profiler": observed, "forward_ad": observed, "empty_strided": None, "is_neg": None, "is_view": None,
})
x = FakeTensor()
assert [module.find_plan("op", x) for _ in range(3)] == [None, True, True]
for DEVICE[:] in ((2, 0), (2, 1)):  # CUDA
    assert [module.find_plan("op", x) for _ in range(3)] == [None, True, True]
for DEVICE[:] in ((1, 0), (2, 0), (2, 1)):
    assert module.find_plan("op", x) is True
described = set()
for DEVICE[:] in ((1, 0), (2, 0), (2, 1)):  # keys of launch plans
    described.add(module.describe_tensors((x,)))
assert len(described) == 3 and None not in described
DEVICE[:] = 3, 0  # memory of the host that CUDA has pinned
assert [module.find_plan("op", x) for _ in range(3)] == [None, None, None]

other, described = FakeTensor(), []

@Describe
def describe_in_turn(address, out):  # the second tensor is on another device
    described.append(address)
    out[0] = Description(1 << 24, (2, len(described) % 2), 1, 32 << 8 | 2, SIZE, STRIDE, 0)
    return 0

table.describe = describe_in_turn
assert [module.find_plan("op", x, other) for _ in range(3)] == [None, None, None] and len(described) == 6
"""


def test_keys_belong_to_a_device():
    """A class with a DLPack table of its own stands for tensors of a GPU."""
    run = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_one_tensor_in_two_places_and_then_two():
    x, other, value = draw(1, CHANNELS, 5, 5), draw(1, CHANNELS, 5, 5, seed=1), draw(1, CHANNELS, 5, 5, seed=2)
    for _ in range(4):
        check(ops.gru_reset, x, x, value, planned=False)
    for _ in range(2):
        ops.gru_reset(x, other, value)
    check(ops.gru_reset, x, other, value)
    check(ops.gru_reset, other, x, x)


def test_number_of_threads_and_instruction_set_belong_to_the_key():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(convolve, x, weight)
    torch.set_num_threads(2)
    assert not run_planned(convolve, x, weight)[1]
    torch.set_num_threads(1)
    if native.get_module().isa() != "avx512":
        return
    native.get_module().set_isa("avx2")
    try:
        check(convolve, x, weight, planned=False)
    finally:
        native.get_module().set_isa("avx512")


def test_threads_have_their_own_plans():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    with plans.suspended():
        expected = convolve(x, weight)
    wrong = []

    def work():
        for _ in range(300):
            if not torch.equal(convolve(x, weight), expected):
                wrong.append(1)
        assert plans.count_runs() > 200

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_errors_are_those_without_plans():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    for _ in range(3):
        with pytest.raises(ValueError, match="c has shape"):
            ops.lstm_gates(x, c[:, 1:])
        with pytest.raises(TypeError):
            ops.lstm_gates(x, None)


def test_many_shapes_take_little_memory():
    for width in range(4, 4 + 5000):
        x = torch.zeros(1, 4, 1, width % 70 + width // 70)
        ops.pixel_shuffle(x, 2)
    entries, _, _ = plans._module.plans_statistics()
    assert entries <= 1024


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer holds freed memory")
def test_memory_stays_flat():
    x, weights = draw(1, CHANNELS, 9, 7), draw(40, CHANNELS, CHANNELS, 3, 3)

    def run(rounds: int) -> None:
        for k in range(rounds):
            weight = weights[k % 40] + k  # at a new address
            for _ in range(3):
                convolve(x, weight)
            convolve(draw(1, CHANNELS, 3 + k % 50, 3 + k // 50), weight)

    run(300)
    before = read_resident_bytes()
    run(2000)
    assert read_resident_bytes() - before < 100 << 20


def test_an_op_inside_a_finalizer():
    """The finalizer calls the op with another weight, while a plan of the same op runs."""
    x, weight, other = draw(1, CHANNELS, 9, 7), *draw(2, CHANNELS, CHANNELS, 3, 3)
    record(convolve, x, weight)
    record(convolve, x, other)
    with plans.suspended():
        expected = convolve(x, weight)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            convolve(x + 1, other)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            Cycle()
            assert torch.equal(convolve(x, weight), expected)
    finally:
        gc.set_threshold(*threshold)


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(block):
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    with block():
        h, _ = ops.lstm_gates(x, c)
        assert h.is_inference() == torch.is_inference_mode_enabled() and not h.requires_grad
        check(ops.lstm_gates, x, c)
    leaf = x.clone().requires_grad_()
    with block():
        h, _ = ops.lstm_gates(leaf, c)
        assert h.requires_grad == torch.is_grad_enabled()


def test_other_devices_have_no_plan():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(convolve, x, weight)
    for _ in range(4):
        result, planned = run_planned(ops.conv3x3, x.to("meta"), weight.to("meta"))
        assert result.is_meta and not planned


def test_strided_weights_are_compared_whole():
    """All elements of a weight are compared, although a strided weight and its dense copy differ in memory."""
    x, memory = draw(1, CHANNELS, 9, 7), torch.zeros(CHANNELS, 2 * CHANNELS, 3, 3)
    weight = memory[:, ::2]
    for k in range(6):
        with plans.suspended():
            expected = convolve(x, weight)
        assert torch.equal(convolve(x, weight), expected)
        weight[-1] += k
    for _ in range(3):
        with plans.suspended():
            expected = convolve(x, memory[:, CHANNELS:])
        assert torch.equal(convolve(x, memory[:, CHANNELS:]), expected)


def test_packed_weights_that_evict_each_other(monkeypatch):
    """A packed weight may take the memory of another one, while a plan uses both."""
    monkeypatch.setattr(packed_weight_cache, "MAX_CACHE_BYTES", 60_000)
    tensors = draw(1, 16, 4, 4), draw(1, 16, 4, 4), draw(32, 32, 3, 3), draw(32), draw(16, 32, 3, 3), draw(16)
    with plans.suspended():
        expected = ops.conv_gru_cell(*tensors)
    for k in range(30):
        others = [t.clone() for t in tensors]
        assert torch.equal(ops.conv_gru_cell(*others), expected)
        assert torch.equal(ops.conv_gru_cell(*tensors), expected)
        convolve(draw(1, 32, 5, 5), draw(32, 32, 3, 3, seed=k))


def test_packing_a_weight_may_overwrite_another_packed_weight():
    a, b = draw(4), draw(4, seed=1)
    copies, packed = [torch.zeros(4), torch.zeros(4)], [torch.zeros(4), torch.zeros(4)]

    def pack(weight, k):
        copies[k].copy_(weight)
        packed[k].copy_(2 * weight)
        return copies[k], packed[k]

    def pack_second(weight):
        if not torch.equal(copies[1], weight):  # as if the cache reused the memory of the first one
            copies[0].fill_(-1)
            packed[0].fill_(-1)
        return pack(weight, 1)

    module, nodes = native.get_module(), [("packed", 0, 0), ("output", 0, 0), ("constant", 4)]
    description = {
        "calls": [(module.plans_copy_strided, nodes + [("constant", (n,)) for n in (4, 1, 1)])],
        "outputs": [((4,), (1,), torch.float32, torch.device("cpu"))],
        "temporaries": [],
        "temporary_bytes": 0,
        "packed": [(0, 0, 1, 16, 0, lambda weight: pack(weight, 0)), (1, 0, 1, 16, 0, pack_second)],
        "workspace": 0,
        "result": 0,
        "results": [0],
    }
    assert torch.equal(module.plans_try(description, "owner", a, b), 2 * a)


def test_temporaries_share_memory_unless_both_are_needed():
    generator = torch.Generator().manual_seed(0)

    def draw_ints(limit: int, count: int) -> list[int]:
        return torch.randint(limit, (count,), generator=generator).tolist()

    for _ in range(200):
        sizes = [1 + n for n in draw_ints(500, 8)]
        reads = [draw_ints(8, 1 + n) for n in draw_ints(4, 12)]
        calls = [(None, [("sequence", (), [("temporary", k, 0)]) for k in read]) for read in reads]
        offsets, size = plans._place_temporaries(calls, sizes)
        used = {k: [n for n, read in enumerate(reads) if k in read] for k in {k for read in reads for k in read}}
        for a in used:
            assert offsets[a] % plans.ALIGNMENT == 0 and offsets[a] + sizes[a] <= size
            for b in used:
                together = used[a][0] <= used[b][-1] and used[b][0] <= used[a][-1]
                if a != b and together:
                    assert offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
    chain = [(None, [("temporary", k, 0), ("temporary", k + 1, 0)]) for k in range(9)]
    assert plans._place_temporaries(chain, [64] * 10)[1] == 128


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_addresses_inside_of_native_objects_are_not_repeated(value, monkeypatch):
    """An object of an unknown class may hold addresses. Equal results of all values would hide that they are old."""
    monkeypatch.setattr(plans, "_CONSTANTS", plans._CONSTANTS - {"InrQueryDims"})
    where = GridSpec.cells((4, 5), (8, 10))

    def query(fill=None):
        maps, *weights = (draw(*shape) for shape in ((1, CHANNELS, 4, 5), (CHANNELS, 2), (3, CHANNELS), (3,)))
        tensors = [maps, *weights] if fill is None else [torch.full_like(t, fill) for t in (maps, *weights)]
        maps, rho_w, weight, bias = tensors
        return ops.inr_query(maps, where, [(weight, bias)], ensemble="none", rho_w=rho_w)

    for _ in range(3):
        query(value)
    check(query, planned=False)


def test_points_of_queries_are_part_of_the_key():
    maps, rho_w = draw(1, CHANNELS, 4, 5), draw(CHANNELS, 2)

    def query(where):
        return ops.inr_query(maps, where, ensemble="early_area", rho_w=rho_w)

    grids = [GridSpec.cells((4, 5), (8, 10)), GridSpec.corners((4, 5), (8, 10))]
    record(lambda: query(grids[0]))
    assert not run_planned(lambda: query(grids[1]))[1]
    record(lambda: query(grids[1]))
    points = [from_index(draw(80, 2, seed=seed).abs(), (4, 5)) for seed in (1, 2)]
    record(lambda: query(points[0]))
    for where in (*grids, *points):  # the values of points are read by each call
        check(lambda where=where: query(where))
    for where in (points[0], grids[0]):
        assert fastds.explain("inr_query", maps, where, ensemble="early_area", rho_w=rho_w)["plan"] == "used"
    assert "plan" not in fastds.explain("inr_query", maps, grids[0], ensemble="none", rho_w=rho_w)


def test_gradients_of_queries_own_their_memory():
    maps, where, width = draw(1, CHANNELS, 4, 5), GridSpec.cells((4, 5), (8, 10)), CHANNELS
    tensors = [draw(width, 2), draw(width), draw(6, width), draw(6), draw(3, 6), draw(3)]
    rho_w, bias, *trunk = [t.requires_grad_() for t in tensors]
    y = ops.inr_query(maps, where, [trunk[:2], trunk[2:]], ensemble="late", rho_w=rho_w, bias=bias)
    for gradient in torch.autograd.grad(y.sum(), tensors):
        assert gradient.untyped_storage().nbytes() == gradient.nbytes


def test_a_call_that_reads_values_has_no_plan():
    def shuffle(x):
        return ops.pixel_shuffle(x, 2) if float(x.reshape(-1)[0]) > 0 else ops.pixel_unshuffle(x, 1)

    public, x = plans.planned(shuffle), draw(1, CHANNELS, 4, 4).abs()
    for _ in range(4):
        assert public(x).shape == (1, CHANNELS // 4, 8, 8)
    assert public(-x).shape == (1, CHANNELS, 4, 4)


def test_batched_gradients():
    x, c = draw(1, 4 * CHANNELS, 5, 6).requires_grad_(), draw(1, CHANNELS, 5, 6)
    h, _ = ops.lstm_gates(x, c)
    along = torch.stack([draw(1, CHANNELS, 5, 6, seed=k) for k in range(3)])
    for _ in range(4):
        single = [torch.autograd.grad(h, x, g, retain_graph=True)[0] for g in along]
        (batched,) = torch.autograd.grad(h, x, along, is_grads_batched=True, retain_graph=True)
        torch.testing.assert_close(batched, torch.stack(single))


def test_changed_shapes_and_storages_of_the_same_tensor():
    x = draw(1, 4 * CHANNELS, 6, 6)
    record(lambda t: ops.pixel_shuffle(t, 2), x)
    x.resize_(1, 4 * CHANNELS, 3, 6)
    check(lambda t: ops.pixel_shuffle(t, 2), x, planned=False)
    x.set_(draw(1, 4 * CHANNELS, 6, 6, seed=3))
    check(lambda t: ops.pixel_shuffle(t, 2), x)


@pytest.mark.parametrize("planned", [True, False])
def test_tensors_without_memory(planned):
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    if planned:
        record(convolve, x, weight)
    zero = torch._efficientzerotensor(x.shape)
    assert torch.equal(convolve(zero, weight), torch.zeros(1, CHANNELS, 9, 7))
    assert torch.equal(torch.ops.fastds.null_op(zero), torch.zeros(x.shape))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ops.null_op(leaf), leaf, zero)
    assert torch.equal(grad, torch.zeros(x.shape))
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x has no memory: its storage was freed"):
        convolve(x, weight)
    with pytest.raises(ValueError, match="x has no memory"):
        torch.ops.fastds.null_op(x)


def test_explain_reports_plans():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    arguments = {"activation": "relu", "algorithm": "winograd"}
    assert "plan" not in fastds.explain("conv3x3", x, weight, **arguments)
    record(convolve, x, weight)
    assert fastds.explain("conv3x3", x, weight, **arguments)["plan"] == "used"
    assert "plan" not in fastds.explain("conv3x3", x[:, :, 1:], weight, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert "plan" not in fastds.explain("conv3x3", x, weight, **arguments)
        record(convolve, x, weight)
        assert fastds.explain("conv3x3", x, weight, **arguments)["plan"] == "used"


def test_public_ops_are_pickled_by_name():
    assert all(pickle.loads(pickle.dumps(getattr(ops, name))) is getattr(ops, name) for name in ops.__all__)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_run_and_record_plans():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(convolve, x, weight)
    with plans.suspended():
        expected = convolve(x + 1, weight), ops.pixel_shuffle(x, 2)
    assert native._recording.acquire()  # as if another thread recorded a call at the time of the fork
    child = os.fork()
    if child == 0:
        good = torch.equal(convolve(x + 1, weight), expected[0]) and plans.count_runs() > 0
        for _ in range(3):
            good &= torch.equal(ops.pixel_shuffle(x, 2), expected[1])
        os._exit(0 if good else 1)
    native._recording.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_unchecked_calls_of_ops_run_plans():
    x = draw(1, 4 * CHANNELS, 6, 6).contiguous(memory_format=torch.channels_last)
    op, before = OPS["null_op"], plans.count_runs()
    for _ in range(3):
        assert torch.equal(op.call_unchecked(x), x)
    assert plans.count_runs() == before + 1


@pytest.mark.parametrize("address", [plans.MIN_ADDRESS, 0x2246AB80, 1 << 40])
def test_addresses_of_other_memory_are_refused(address):
    """The heap begins below 4 GiB where the interpreter is not position-independent."""
    x = torch.zeros(3)
    calls: list = []
    with plans._Allocations(calls, []) as allocations:
        y = torch.empty(3)
    describer = plans._Describer([x], allocations, [], [], y)
    assert describer.node(x.data_ptr()) == ("input", 0, 0) and describer.node(7) == ("constant", 7)
    with pytest.raises(plans.PlanRefusedError):
        describer.node(address)


def test_copies_in_one_workspace_are_planned():
    """The op copies both tensors to the same workspace, at different offsets."""
    for seed in range(4):
        x, y = (torch.randn(40, 3, generator=torch.Generator().manual_seed(seed + k)).t() for k in (0, 10))
        before = plans.count_runs()
        assert torch.equal(ops.null_op(x, y, 2.0), 2 * x + y)
        assert (plans.count_runs() > before) == (seed > 1)
