# SPDX-License-Identifier: Apache-2.0
"""Plans of calls on a GPU run the same kernels on the same tensors as the Python code, on a device without results."""

import contextlib
import itertools

import pytest
import torch

import fastds
from bench import launches
from bench.idle_cuda import move_to_idle_cuda, take_copies
from fastds import models, ops
from fastds.ops.core import native, plans, triton_loader
from fastds.ops.impl.deform_conv2d.guided import guided_deform_conv2d

BFLOAT16, HALF, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def draw(*shape, dtype=BFLOAT16):
    """Return a tensor on the device; feature maps and filters are channels_last."""
    t = torch.empty(shape, dtype=dtype, device="cuda")
    return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t


def list_calls():
    """Return (function, tensors, whether it has a plan) by name. Calls of native kernels have none."""
    x, x2, narrow = draw(1, 16, 6, 5), draw(1, 8, 6, 5), draw(1, 24, 6, 5)[:, 8:]
    contiguous, wide = torch.empty(1, 16, 6, 5, dtype=BFLOAT16, device="cuda"), draw(1, 64, 8, 8)
    three, four, bias = draw(16, 16, 3, 3), draw(64, 32, 3, 3), draw(16)
    h, c = draw(1, 16, 6, 5), draw(1, 16, 6, 5, dtype=FLOAT32)
    pair, new = draw(32, 32, 3, 3), draw(16, 32, 3, 3)
    act = {"activation": "leaky_relu"}
    base = draw(1, 2, 6, 5, dtype=FLOAT32)
    return {
        "conv3x3": (lambda x, w, b: ops.conv3x3(x, w, b), (x, three, bias), True),
        "slice": (lambda x, w, b: ops.conv3x3(x, w, b), (narrow, three, bias), True),
        "contiguous": (lambda x, w, b: ops.conv3x3(x, w, b), (contiguous, three.contiguous(), bias), True),
        "residual": (lambda x, w, b, r: ops.conv3x3(x, w, b, residual=r, **act), (x, three, bias, h), True),
        "two sources": (lambda x, y, w: ops.conv3x3(x, w, second_input=y), (x, x2, draw(16, 24, 3, 3)), True),
        "shuffle": (lambda x, w, b: ops.conv3x3(x, w, b, upscale_factor=2), (x, three, bias), True),
        "float32 weight": (lambda x, w, b: ops.conv3x3(x, w, b), (x, three.float(), bias.float()), True),
        "other dtype": (lambda x, w: ops.conv3x3(x, w, out_dtype=FLOAT32), (x, three), False),
        "conv3x3 in float32": (lambda x, w: ops.conv3x3(x, w), (x.float(), three.float()), False),
        "conv1x1": (lambda x, w, b: ops.conv1x1(x, w, b), (x, draw(16, 16, 1, 1), bias), None),
        "conv2d": (lambda x, w, b: ops.conv2d(x, w, b), (x, draw(16, 16, 5, 5), bias), None),
        "lstm": (ops.conv_lstm_cell, (x, h, c, four, draw(64)), True),
        "lstm with weights in float32": (ops.conv_lstm_cell, (x, h, c, four.float(), draw(64, dtype=FLOAT32)), True),
        "lstm without bias": (ops.conv_lstm_cell, (narrow, h, draw(1, 16, 6, 5), four), True),
        "gru": (ops.conv_gru_cell, (x, h, pair, draw(32), new, bias), None),
        "st_lstm": (ops.conv_st_lstm_gates, (x, h, c, four, draw(64)), True),
        "lstm_gates": (ops.lstm_gates, (draw(1, 64, 6, 5), c.to(BFLOAT16)), False),
        "pixel_shuffle": (lambda x: ops.pixel_shuffle(x, 2), (wide,), False),
        "null_op": (ops.null_op, (x,), None),
        "deform_conv2d": (
            lambda x, o, w, b, m: ops.deform_conv2d(x, o, w, b, padding=1, mask=m),
            (x, draw(1, 18, 6, 5), three, bias, draw(1, 9, 6, 5)),
            None,
        ),
        "guided": (
            lambda x, raw, w, b, base: guided_deform_conv2d(x, raw, w, b, base, 1, True, 0.1),
            (x, draw(1, 27, 6, 5), three, bias, base),
            None,
        ),
        "attention": (lambda q, k, v: ops.window_attention2d(q, k, v, window=3), (x, h, draw(1, 16, 6, 5)), None),
    }  # fmt: skip


class Names:
    """Names of addresses: places in the inputs, and numbers of the other tensors in the order of their first use."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.others = {}

    def find(self, address):
        for k, t in enumerate(self.tensors):
            extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            if t.data_ptr() <= address < t.data_ptr() + extent * t.element_size():
                return "input", k, address - t.data_ptr()
        return "other", self.others.setdefault(address, len(self.others))


def trace(driver, function, tensors):
    """Return what a call does: copies, launches and results, with names in place of addresses."""
    driver.take(), take_copies()
    result = function(*tensors)
    names = Names(tensors)
    copies = [(names.find(a), names.find(b)) for a, b in take_copies()]
    launches = [
        (*one[:5], [names.find(v[1]) if type(v) is tuple else (type(v), repr(v)) for v in one.arguments])
        for one in driver.take()
    ]
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    described = [(names.find(t.data_ptr()), t.shape, t.stride(), t.dtype, t.requires_grad) for t in results]
    return copies, launches, type(result), described


def copy_layout(tensors):
    """Return other tensors of the same layouts and alignments."""
    made = []
    for t in tensors:
        offset = t.storage_offset()
        memory = torch.empty(t.untyped_storage().nbytes() // t.element_size(), dtype=t.dtype, device="cuda")
        made.append(memory.as_strided(t.shape, t.stride(), offset).requires_grad_(t.requires_grad))
    return tuple(made)


def check(driver, function, tensors, planned=None):
    """Compare a call by its Python code with its first calls with plans.

    Args:
        driver: the idle driver.
        function: function of the tensors.
        tensors: its arguments.
        planned: whether the third call must run a plan, None if it may.
    """
    with plans.suspended():
        expected = trace(driver, function, tensors)
    before = plans.count_runs()
    for _ in range(2):
        assert trace(driver, function, tensors) == expected
    middle = plans.count_runs()
    for arguments in (tensors, copy_layout(tensors)):
        assert trace(driver, function, arguments) == expected
    assert planned is None or plans.count_runs() - middle == (2 if planned else 0)
    return middle - before


@pytest.mark.parametrize("autocast", [False, True])
def test_plans_run_the_kernels_of_the_python_code(autocast, idle_cuda):
    calls = list_calls()
    with torch.no_grad(), torch.autocast("cuda", BFLOAT16, enabled=autocast):
        for name, (function, tensors, planned) in calls.items():
            try:
                check(idle_cuda, function, tensors, None if autocast else planned)
            except Exception as error:
                raise AssertionError(name) from error


def test_calls_of_one_function_in_turn(idle_cuda):
    """Neighbouring calls, interleaved: strides, alignment, dtypes, a tensor given twice, autocast and its dtype."""
    w, b, r = draw(16, 16, 3, 3), draw(16), draw(1, 16, 6, 5)
    maps = [draw(1, 16, 6, 5), draw(1, 24, 6, 5)[:, 8:], draw(1, 24, 6, 5)[:, 1:17], draw(1, 16, 6, 5, dtype=HALF), r]
    weights = [(w, b), (w.contiguous(), b), (w.float(), b.float())]

    def run(x, w, b, r):
        return ops.conv3x3(x, w.to(x.dtype) if w.dtype != FLOAT32 else w, b.to(w.dtype), residual=r.to(x.dtype))

    contexts = [
        contextlib.nullcontext,
        lambda: torch.autocast("cuda", BFLOAT16),
        lambda: torch.autocast("cuda", HALF),
        lambda: torch.autocast("cpu", BFLOAT16),
        torch.inference_mode,
        lambda: fastds.use_conv_algorithm("direct"),
        lambda: fastds.use_backend("reference"),
    ]
    calls = list(itertools.product(maps, weights, contexts))
    for x, (w, b), context in calls + calls[::-1]:
        with torch.no_grad(), context():
            if x.dtype == HALF and w.dtype == BFLOAT16:
                continue
            with plans.suspended():
                expected = trace(idle_cuda, run, (x, w, b, r))
            assert trace(idle_cuda, run, (x, w, b, r)) == expected
    assert plans.count_runs() > 20


NETWORKS = {  # arguments after the first
    "fczsm-small": ((1, 2, 1, 16, 20), lambda: (None, draw(1, 1, 2, 2, 16, 20, dtype=FLOAT32))),
    "db-convlstm": ((2, 3, 1, 16, 16), lambda: (2,)),
    "ms-convgru-small": ((1, 3, 1, 16, 16), lambda: (2,)),
    "nowcast-small": ((1, 3, 1, 32, 32), lambda: (2, draw(1, 2, 32, 32, dtype=FLOAT32))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_the_same_kernels(name, idle_cuda):
    shape, further = NETWORKS[name]
    model, further = move_to_idle_cuda(models.create(name).eval()), further()
    x = torch.empty(shape, device="cuda")

    def run(x, *weights):
        result = model(x, *further)
        return list(result) if isinstance(result, tuple | list) else result

    weights = tuple(p for p in model.parameters())
    with torch.no_grad(), torch.autocast("cuda", BFLOAT16):
        with plans.suspended(), launches.without_launch_plans():
            expected = trace(idle_cuda, run, (x, *weights))
        assert len(expected[1]) > 20
        for _ in range(4):
            assert trace(idle_cuda, run, (x, *weights)) == expected
    assert plans.count_runs() > 20


def test_calls_with_gradients(idle_cuda):
    """Gradients are recorded as without plans. The forward pass of an autograd function may run a plan."""
    for name in ("conv3x3", "lstm"):
        function, tensors, _ = list_calls()[name]
        tracked = tuple(t.requires_grad_() for t in tensors)
        check(idle_cuda, function, tracked)
        result = function(*tracked)
        assert (result if isinstance(result, torch.Tensor) else result[0]).grad_fn is not None
        with torch.no_grad():
            check(idle_cuda, function, tracked, planned=True)


def test_settings_have_plans_of_their_own(idle_cuda):
    function, tensors, _ = list_calls()["conv3x3"]
    with torch.no_grad():
        check(idle_cuda, function, tensors, planned=True)
        with torch.enable_grad():  # ops may choose another kernel even if no tensor requires a gradient
            runs = plans.count_runs()
            function(*tensors)
            assert plans.count_runs() == runs
            check(idle_cuda, function, tensors, planned=True)
        torch.backends.cuda.matmul.allow_tf32 = True  # in the fork of this test
        runs = plans.count_runs()
        function(*tensors)
        assert plans.count_runs() == runs
        check(idle_cuda, function, tensors, planned=True)


def test_explain_states_that_a_plan_runs(idle_cuda):
    function, tensors, _ = list_calls()["lstm"]
    with torch.no_grad():
        assert "plan" not in fastds.explain("conv_lstm_cell", *tensors)
        check(idle_cuda, function, tensors, planned=True)
        assert fastds.explain("conv_lstm_cell", *tensors)["plan"] == "used"


def convolve(x, w, b=None):
    """Return a convolution by the Triton kernel."""
    return ops.conv3x3(x, w, b, activation="relu")


OTHER: list = []  # a tensor that is no argument
UNPLANNED = {
    "another function of torch": lambda x, w: (x + 1, convolve(x, w))[1],
    "a function of torch in place": lambda x, w: (x.zero_(), convolve(x, w))[1],
    "a value": lambda x, w: (x.sum().item(), convolve(x, w))[1],
    "an index": lambda x, w: convolve(x[torch.zeros(1, dtype=torch.int64, device="cuda")], w),
    "a tensor that is no argument": lambda x, w: convolve(x, w, OTHER[0]),
    "a property": lambda x, w: (x._version, convolve(x, w))[1],
    "an address": lambda x, w: (x.data_ptr(), convolve(x, w))[1],
    "a native function": lambda x, w: (native.get_module().null_op_cuda(), convolve(x, w))[1],
}


@pytest.mark.parametrize("what", UNPLANNED)
def test_calls_that_do_more_have_no_plans(what, idle_cuda):
    OTHER[:] = [draw(16)]
    x, w = draw(1, 16, 6, 5), draw(16, 16, 3, 3)
    with torch.no_grad():
        for function, has_plan in ((plans.planned(lambda x, w: convolve(x, w)), True), (UNPLANNED[what], False)):
            function = function if has_plan else plans.planned(function)
            for _ in range(4):
                function(x, w)
            assert plans.has_plan(function, (x, w), {}) == has_plan


def test_a_kernel_outside_of_launchers_prevents_a_plan(idle_cuda):
    from fastds.kernels import launch_plans, null_op

    def run(x, y):
        launch_plans.launch_kernel(null_op.null_op, (1,), x, None, y, 4, 1.0, HAS_OTHER=False, BLOCK=1024)
        return x.view(-1)

    function = plans.planned(run)
    x, y = draw(4), draw(4)
    with torch.no_grad():
        for _ in range(4):
            function(x, y)
            assert len(idle_cuda.take()) == 1
        assert not plans.has_plan(function, (x, y), {})


def test_views_casts_and_names_are_repeated(idle_cuda):
    from fastds.kernels import deform_conv2d

    def run(x, raw, w, base):
        offset, mask = raw[:, :18], raw[:, 18:]
        y = torch.empty_like(x)
        problem = deform_conv2d.Problem((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
        deform_conv2d.launch_forward(
            x, offset, mask, w.to(x.dtype), None, y, problem, base=base.float().contiguous(), sigmoid=True
        )
        return [y, y[:, :8], x.view(1, 16, 30)]

    tensors = (draw(1, 16, 6, 5), draw(1, 27, 6, 5), draw(16, 16, 3, 3, dtype=FLOAT32), draw(1, 2, 6, 5))
    with torch.no_grad():
        check(idle_cuda, plans.planned(run), tensors, planned=True)


def test_without_launch_plans_there_are_no_plans(idle_cuda, monkeypatch):
    monkeypatch.setattr(triton_loader, "find_reason_without_launch_plans", lambda: "planted")
    function, tensors, _ = list_calls()["conv3x3"]
    with torch.no_grad():
        check(idle_cuda, function, tensors, planned=False)


def test_plans_are_made_on_request(idle_cuda, monkeypatch):
    monkeypatch.setattr(plans, "gpu_plans_enabled", False)
    function, tensors, _ = list_calls()["conv3x3"]
    with torch.no_grad():
        check(idle_cuda, function, tensors, planned=False)


def test_benchmark_of_networks(idle_cuda, monkeypatch):
    monkeypatch.setattr(launches, "time_calls", lambda runs: [float(run() is None) for run in runs])
    row = launches.time_network("db-convlstm")
    assert row["kernels"] > 100 and row["times"] == [1.0, 1.0]
