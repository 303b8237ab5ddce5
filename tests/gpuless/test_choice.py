# SPDX-License-Identifier: Apache-2.0
"""Tests of the backend that an op selects on a GPU, with fake CUDA tensors."""

import csv
import functools
from pathlib import Path

import pytest
import torch
from fastds.kernels import inr_query as inr_kernels
from gpuless.fake_cuda import BuiltWithCuda
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

import fastds
from fastds.ops import GridSpec
from fastds.ops.core import gpu_measurements
from fastds.ops.core import native as _native
from fastds.ops.core import triton_loader as _triton
from fastds.ops.core.backends import select_backend
from fastds.ops.core.registry import OPS
from fastds.ops.impl.conv3x3 import kernels, triton_implicit_gemm
from fastds.ops.impl.conv_rnn.op import LSTM
from fastds.ops.impl.deform_conv2d import guided as guided
from fastds.ops.impl.deform_conv2d import kernel_times, selection
from fastds.ops.impl.deform_conv2d.kernel_times import rank_kernels
from tests.support.inr_cases import flat_arguments


@pytest.fixture(params=[True, False], ids=["built_with_cuda", "built_without_cuda"])
def native_cuda(request, monkeypatch):
    monkeypatch.setattr(_native, "_module", BuiltWithCuda() if request.param else object())
    monkeypatch.setattr(_native, "_missing", None)


def arguments(dtype=torch.bfloat16, channels=64, outputs=64, groups=1, offset_groups=8, device="cuda"):
    """Return the positional arguments of torch.ops.fastds.deform_conv2d as fake tensors."""
    with FakeTensorMode():
        maps = (2 * offset_groups * 9, offset_groups * 9)
        x = torch.empty(1, channels, 20, 20, dtype=dtype, device=device)
        offset, mask = (torch.empty(1, n, 20, 20, dtype=dtype, device=device) for n in maps)
        weight = torch.empty(outputs, channels // groups, 3, 3, dtype=dtype, device=device)
    return x, offset, weight, None, (1, 1), (1, 1), (1, 1), mask


@pytest.mark.parametrize(
    "options, tensor_cores",
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, True),
        ({"channels": 8, "offset_groups": 2}, False),
        ({"outputs": 8}, False),
        ({"channels": 64, "groups": 4}, True),
        ({"channels": 64, "groups": 64}, False),
    ],
    ids=str,
)
def test_deform_conv2d_uses_tensor_cores_for_large_inputs(options, tensor_cores, native_cuda):
    found = fastds.explain("deform_conv2d", *arguments(**options))
    if tensor_cores or found["native"].startswith("refused"):
        assert found["triton"] == "chosen", found
    else:
        assert found["native"] == "chosen" and found["triton"] == "usable", found


def explain_channels_last(taps=3, dtype=torch.bfloat16, channels=64, outputs=64, backward=False):
    """Return fastds.explain of deform_conv2d, or of its backward pass."""
    with FakeTensorMode():
        x, offset, mask = (
            torch.empty(1, n, 200, 200, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
            for n in (channels, 16 * taps**2, 8 * taps**2)
        )
        weight = torch.empty(outputs, channels, taps, taps, dtype=dtype, device="cuda")
    geometry = (1, 1), (taps // 2, taps // 2), (1, 1)
    if backward:
        return fastds.explain("deform_conv2d_backward", x, x, offset, weight, *geometry, mask, [True] * 5)
    return fastds.explain("deform_conv2d", x, offset, weight, None, *geometry, mask)


def test_kernel_of_deform_conv2d_by_times(monkeypatch):
    """Kernels that no GPU has run are last. An estimate replaces a measured time only if it is at most half of it."""
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    monkeypatch.setattr(_native, "_missing", None)
    monkeypatch.setattr(selection, "can_use_shared_memory", lambda x, offset, weight, *_: weight.shape[2] == 3)
    found = explain_channels_last()
    assert found["native"] == "chosen" and found["kernels"].startswith("window: 88 us, measured on NVIDIA H200; ")
    assert "triton: 118 us, measured on NVIDIA H200" in found["kernels"]
    assert "two passes: 52 us, estimated" in found["kernels"]
    found = explain_channels_last(taps=5)  # no kernel was measured with 25 taps
    assert found["triton"] == "chosen" and found["kernels"].endswith("; two passes: 137 us, estimated")
    assert "measured" not in found["kernels"]
    monkeypatch.setattr(kernel_times, "UNTRIED", frozenset())
    monkeypatch.setattr(selection, "rank_kernels", rank_kernels.__wrapped__)  # without its cache
    found = explain_channels_last(taps=5)
    assert found["native"] == "chosen" and found["kernels"].startswith("two passes: 137 us, estimated; ")
    found = explain_channels_last(dtype=torch.float32)
    assert found["triton"] == "chosen" and found["kernels"].startswith("triton: 201 us, measured on NVIDIA H200; ")
    with selection.use_two_passes(True):
        assert explain_channels_last()["kernels"] == "two passes: 52 us, estimated"
    with selection.use_two_passes(False):
        assert "two passes" not in explain_channels_last(taps=5)["kernels"]
    monkeypatch.setattr(_native, "_module", object())
    assert "two passes" not in explain_channels_last()["kernels"]


def test_fused_kernel_of_deform_conv2d_on_request(monkeypatch):
    """It is listed after the kernels that a GPU has run, and runs only if it is requested."""
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    monkeypatch.setattr(_native, "_missing", None)
    monkeypatch.setattr(selection, "can_use_shared_memory", lambda x, offset, weight, *_: weight.shape[2] == 3)
    assert "fused" not in explain_channels_last()["kernels"]  # deform_conv2d_fused_fits returns None
    monkeypatch.setattr(BuiltWithCuda, "deform_conv2d_fused_fits", lambda *_: True, raising=False)
    for taps, time in ((3, 59), (5, 160)):
        found = explain_channels_last(taps)["kernels"]
        assert "; two passes: " in found and f"; fused: {time} us, estimated" in found, found
    found = explain_channels_last(dtype=torch.float32)["kernels"]
    assert "fused" not in found
    with selection.use_fused():
        found = explain_channels_last(taps=5)
        assert found["native"] == "chosen" and found["kernels"] == "fused: 160 us, estimated"
        assert found["kernels of gradients"] == explain_channels_last(taps=5, backward=True)["kernels"]
        wide = explain_channels_last(outputs=256)["kernels"]  # each 128 outputs compute the samples again
        assert wide == "fused: 116 us, estimated"
        with pytest.raises(RuntimeError, match="requested, but cannot run: the fused kernel has no torch.float32"):
            explain_channels_last(dtype=torch.float32)


def test_kernel_of_the_gradients_of_deform_conv2d_by_times(monkeypatch):
    """An estimate never replaces a measured time, and kernels that no GPU has run are last."""
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    monkeypatch.setattr(_native, "_missing", None)

    found = explain_channels_last()["kernels of gradients"]
    assert found.startswith("triton: 532 us, measured on NVIDIA H200; ") and "two passes: 188 us, estimated" in found
    backward = explain_channels_last(backward=True)
    assert backward["triton"] == "chosen" and backward["kernels"] == found
    with selection.use_two_passes(True):
        assert explain_channels_last()["kernels of gradients"] == "two passes: 188 us, estimated"
        assert explain_channels_last(backward=True)["native"] == "chosen"
    for options in ({"taps": 5}, {"dtype": torch.float32}, {"channels": 128, "outputs": 128}):  # not measured
        found = explain_channels_last(backward=True, **options)
        assert not found["kernels"].startswith("two passes: ") and "; two passes: " in found["kernels"], options
        assert "measured" not in found["kernels"], options
    torch.use_deterministic_algorithms(True)
    try:
        assert explain_channels_last(backward=True)["kernels"].startswith("plain: ")
    finally:
        torch.use_deterministic_algorithms(False)


def test_estimates_scale_with_the_call():
    def find(kernels, *sizes):
        return {time.kernel: time for time in rank_kernels(kernels, 16, *sizes)}

    kernels = ("window", "two passes")
    small, large = (find(kernels, pixels, 9, 64, 64, 1) for pixels in (10_000, 40_000))
    for kernel in kernels:
        assert small[kernel].microseconds < large[kernel].microseconds / 2
        assert small[kernel].measured == (kernel == "window")
    wide = find(("triton", "two passes"), 40_000, 9, 64, 256, 1)  # in one pass every sample is computed four times
    assert wide["triton"].microseconds == pytest.approx(4 * 116 + 2) and not wide["triton"].measured
    assert wide["two passes"].microseconds == pytest.approx(34 + 4 * 14 + 4)


def test_float64_and_cpu_are_rejected_with_a_reason(native):
    found = fastds.explain("deform_conv2d", *arguments(torch.float64))
    assert found["triton"] == "refused: no Triton kernel for torch.float64"
    cpu = arguments(torch.float32, device="cpu")
    found = fastds.explain("deform_conv2d", *cpu)
    assert found["native"] == "chosen" and found["reference"] == "usable"
    assert found["triton"] == "refused: Triton kernels run on CUDA tensors, got a cpu tensor"
    with fastds.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was requested, .* got a cpu tensor"):
        select_backend(OPS["deform_conv2d"], cpu)


def test_forced_triton_backend_is_used(native_cuda):
    with fastds.use_backend("triton"):
        assert select_backend(OPS["deform_conv2d"], arguments(torch.float32)) == "triton"
    with fastds.use_backend("reference"):
        assert select_backend(OPS["deform_conv2d"], arguments()) == "reference"


def test_old_gpu_and_missing_triton(monkeypatch, native):
    monkeypatch.setattr(_triton, "get_capability", lambda index: (7, 5))
    found = fastds.explain("deform_conv2d", *arguments())["triton"]
    assert found.startswith("refused: Triton kernels need compute capability 8.0 or newer, cuda:0 has 7.5"), found
    monkeypatch.setattr(_triton, "get_missing_reason", lambda: "the package triton is not installed")
    assert fastds.explain("deform_conv2d", *arguments())["triton"] == "refused: the package triton is not installed"


def test_deterministic_algorithms_exclude_the_atomic_gradient(native):
    x, offset, weight, _, *geometry, mask = arguments()
    backward = OPS["deform_conv2d_backward"]

    def reason(*needs_grad):
        return backward.backends["triton"].unsupported_reason(x, x, offset, weight, *geometry, mask, needs_grad)

    assert reason(True, True, True, True, True) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert "adds atomically" in reason(True, False, False, False, False)
        assert reason(False, True, True, True, True) is None
        with torch.no_grad():
            assert guided.is_supported(x)
        assert not guided.is_supported(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert guided.is_supported(x) and not guided.is_supported(torch.ones(1, 64, 4, 4))


@pytest.mark.parametrize(
    "dtype, channels, algorithm, chosen",
    [
        (torch.bfloat16, 24, "auto", "triton"),
        (torch.float16, 16, "auto", "triton"),
        (torch.float32, 24, "auto", "native"),
        (torch.bfloat16, 8, "auto", "native"),
        (torch.bfloat16, 24, "direct", "native"),
    ],
    ids=str,
)
def test_backend_of_conv_lstm_cell(dtype, channels, algorithm, chosen, native_cuda):
    with FakeTensorMode():
        tensors = make_lstm_step(channels, dtype)
    found = fastds.explain("conv_lstm_cell", *tensors, algorithm, False)
    other = "native" if chosen == "triton" else "triton"
    assert found[chosen] == "chosen" and found[other] == "usable", found


@pytest.mark.parametrize(
    "name, gates, others",
    [
        ("conv_gru_reset", 2, 1),
        ("conv_gru_update", 1, 2),
        ("conv_st_lstm_gates", 4, 1),
        ("conv_memory_gates", 3, 1),
        ("conv_output_gate", 1, 1),
    ],
)
@pytest.mark.parametrize("dtype, chosen", [(torch.bfloat16, "triton"), (torch.float32, "native")], ids=str)
def test_kernels_of_cell_stages(name, gates, others, dtype, chosen, native_cuda):
    with FakeTensorMode():
        x = torch.empty(1, 24, 9, 9, dtype=dtype, device="cuda")
        weight = torch.empty(gates * 24, 48, 3, 3, dtype=dtype, device="cuda")
    options = {"conv_gru_update": ("z", "tanh", 0.0), "conv_memory_gates": ("none",), "conv_output_gate": ("sigmoid",)}
    found = fastds.explain(
        name, x, x, weight, None, None, *others * [x], *options.get(name, ()), "auto", False
    )  # fmt: skip
    other = "native" if chosen == "triton" else "triton"
    assert found[chosen] == "chosen" and found[other] == "usable", found


def test_backend_of_window_attention2d(native_cuda):
    with FakeTensorMode():
        q = torch.empty(1, 24, 9, 9, device="cuda")
    found = fastds.explain("window_attention2d", q, q, q, 5)
    assert found["triton"] == "chosen", found
    assert found["native"] == "refused: there is no native kernel for cuda tensors"
    assert fastds.explain("window_attention2d", *3 * [q.double()], 5)["reference"] == "chosen"


@pytest.mark.parametrize(
    "name, arguments, kernels",
    [
        ("pixel_shuffle", [(1, 16, 8, 8), 2], "native: measured on NVIDIA H200"),
        ("pixel_unshuffle", [(1, 4, 8, 8), 2], "native: estimated"),
        ("window_attention2d", [*3 * [(1, 24, 9, 9)], 5], "triton: measured on NVIDIA H200"),
        ("null_op", [(1, 4, 8, 8)], "native: estimated"),
    ],
)
def test_explain_states_whether_kernels_were_measured(name, arguments, kernels, monkeypatch):
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    with FakeTensorMode():
        tensors = [torch.empty(a, device="cuda") if isinstance(a, tuple) else a for a in arguments]
    assert fastds.explain(name, *tensors)["kernels"] == kernels
    on_cpu = [torch.empty(a) if isinstance(a, tuple) else a for a in arguments]
    assert "kernels" not in fastds.explain(name, *on_cpu)


def test_explain_states_which_kernel_convolves_on_request(monkeypatch):
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    monkeypatch.setattr(BuiltWithCuda, "conv3x3_window_fits", lambda *_: True, raising=False)
    x, weight, *_ = convolution()
    narrow, few, *_ = convolution(inputs=(12,))

    def explain(algorithm, x=x, weight=weight):
        return fastds.explain("conv3x3", x, weight, algorithm=algorithm)["kernels"]

    assert explain("window") == "window: estimated" and explain("auto") == "native: measured on NVIDIA H200"
    assert explain("window", narrow, few).startswith("as with 'auto': the channels, strides and addresses")


def make_lstm_step(channels=24, dtype=torch.bfloat16, device="cuda"):
    """Return the tensors of torch.ops.fastds.conv_lstm_cell: x, h, weight, bias, residual and c."""
    x, c = (torch.empty(1, channels, 9, 9, dtype=d, device=device) for d in (dtype, torch.float32))
    return x, x, torch.empty(4 * channels, 2 * channels, 3, 3, dtype=dtype, device=device), None, None, c


def test_explain_states_which_kernel_computes_a_cell_on_request(monkeypatch):
    """Calls that the kernel does not take run as with "auto", by Triton if they have enough channels."""
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    monkeypatch.setattr(BuiltWithCuda, "conv_gates_window_fits", lambda *_: True, raising=False)

    def explain(algorithm, *options):
        with FakeTensorMode():
            found = fastds.explain("conv_lstm_cell", *make_lstm_step(*options), algorithm, False)
        return [name for name in ("native", "triton") if found[name] == "chosen"], found["kernels"]

    assert explain("window") == (["native"], "window: estimated")
    assert explain("auto") == (["triton"], "triton: measured on NVIDIA H200")
    wide, narrow, single = explain("window", 20), explain("window", 12), explain("window", 24, torch.float32)
    assert wide[0] == ["triton"] and narrow[0] == ["native"] and single[0] == ["native"]
    assert wide[1] == narrow[1] == "as with 'auto': the channels, strides and addresses must be multiples of 8 elements"
    assert single[1] == "as with 'auto': the kernel has no torch.float32"
    with fastds.use_backend("triton"):
        assert explain("window") == (["triton"], "triton: measured on NVIDIA H200")
    monkeypatch.setattr(BuiltWithCuda, "conv_gates_window_fits", lambda *_: False)
    assert explain("window")[0] == ["triton"] and "shared memory" in explain("window")[1]


def test_measured_kernels_have_rows_in_the_results():
    with open(Path(__file__).resolve().parents[2] / "bench" / "results" / "gpu.csv") as file:
        rows = list(csv.DictReader(file))
    backends = {"fastds cuda": "native", "fastds triton": "triton", "fastds implicit_gemm": "native"}
    measured = {(row["op"], row["mode"], backends[row["peer"]]) for row in rows if row["peer"] in backends}
    assert all(row["device"].startswith(gpu_measurements.MEASURED_ON) for row in rows if row["peer"] in backends)
    row_of = {"conv_gru_reset": "conv_gru_cell", "conv_gru_update": "conv_gru_cell", "inr_query": "inr_query attention"}
    for op, backend in gpu_measurements.MEASURED:
        forward, backward, _ = op.partition("_backward")
        assert op in OPS and (row_of.get(op, forward), "backward" if backward else "forward", backend) in measured


def explained_query(dtype=torch.bfloat16, width=64, ensemble="early_area"):
    with FakeTensorMode():
        maps = torch.empty(1, width, 6, 7, dtype=dtype, device="cuda")
        trunk = [(torch.empty(n, width, device="cuda"), torch.empty(n, device="cuda")) for n in (width, 3)]
    call = flat_arguments(maps, GridSpec.cells((6, 7), (12, 14)), trunk, ensemble=ensemble)
    return fastds.explain("inr_query", *call)


@pytest.mark.parametrize("width, ensemble, chosen", [
    (256, "late", "triton"), (256, "early_area", "native"), (32, "late", "native"), (128, "none", "native"),
])  # fmt: skip
def test_backend_of_inr_query_ensembles(width, ensemble, chosen, monkeypatch):
    monkeypatch.setattr(_native, "_module", BuiltWithCuda())
    assert explained_query(width=width, ensemble=ensemble)[chosen] == "chosen"


def test_unsupported_blackwell_instructions_are_rejected(native_cuda, monkeypatch):
    monkeypatch.setattr(_triton, "get_capability", lambda index: (10, 0))
    monkeypatch.setattr(inr_kernels, "get_triton_version", lambda: (3, 6))
    message = explained_query(width=256, ensemble="late")["triton"]
    assert message.startswith("refused: Triton") and "cannot compile the late ensemble with D = 256" in message
    assert not explained_query(width=128, ensemble="late")["triton"].startswith("refused")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_inr_query_in_float32_uses_cuda(dtype, native_cuda):
    found = explained_query(dtype)
    if dtype == torch.float32:
        assert found["triton"].startswith("refused: the fused kernel takes bfloat16 and float16"), found
    else:
        assert found["triton"] == "chosen", found


def convolution(dtype=torch.bfloat16, inputs=(64,), outputs=64, size=3, **options):
    """Return the arguments of implicit.pays as fake tensors. By default the bias is the only optional tensor."""
    with FakeTensorMode():
        x, x2 = (torch.empty(1, n, 9, 9, dtype=dtype, device="cuda") for n in (*inputs, inputs[0])[:2])
        weight = torch.empty(outputs, sum(inputs), size, size, dtype=dtype, device="cuda")
    given = {"bias": weight, "residual": None, "act": "none", "shuffle": 1, "out_dtype": dtype} | options
    return x, weight, given.pop("bias"), x2 if len(inputs) == 2 else None, *given.values()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float64}, False),
        ({"out_dtype": torch.float32}, False),
        ({"bias": None}, False),
        ({"bias": None, "act": "relu"}, True),
        ({"bias": None, "inputs": (64, 64)}, True),
        ({"inputs": (128,)}, False),
        ({"inputs": (128,), "size": 1}, True),
        ({"inputs": (64, 64)}, True),
        ({"inputs": (256, 256), "outputs": 256}, False),
    ],
    ids=str,
)
def test_implicit_gemm_convolutions(options, expected):
    call = convolution(**options)
    assert triton_implicit_gemm.is_faster(*call) is expected
    with fastds.use_backend("native"):
        assert not triton_implicit_gemm.is_faster(*call)
    with fastds.use_backend("triton"):
        assert triton_implicit_gemm.is_faster(*call) is expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_weights_are_read_in_place_or_transposed_once(dtype):
    wide = torch.randn(5, 12, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    single, plain = wide[:, 3:4], torch.randn(5, 6, 3, 3, dtype=dtype)
    assert all(
        triton_implicit_gemm.to_kernel_layout(w, dtype) is w
        for w in (wide, wide[:, 2:9], single, wide[:1], wide[..., :1, :1])
    )
    for other in (plain, plain.transpose(2, 3), wide.transpose(2, 3), wide[:, ::2], plain.double()):
        packed = triton_implicit_gemm.to_kernel_layout(other, dtype)
        assert packed.is_contiguous(memory_format=torch.channels_last) and torch.equal(packed, other.to(dtype))


def test_algorithms_of_conv3x3_on_a_gpu(fake_cuda, monkeypatch):
    """The backend is called directly, because fake tensors do not pass the dispatcher."""
    x, weight = (torch.rand(shape, device="cuda").bfloat16() for shape in ((1, 64, 9, 9), (64, 64, 3, 3)))
    bias, started = weight[:, 0, 0, 0].contiguous(), []
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, **__: started.append(self.fn.__name__))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    run = functools.partial(kernels.forward, x, weight, bias, None, None, "relu", 0.0, "zeros", 1, torch.bfloat16)
    for algorithm in ("auto", "implicit_gemm", "direct"):
        run(algorithm)
    assert started == 2 * ["_convolution_kernel"]
    calls = []
    module = type(
        "Module", (), {"conv3x3_window_fits": lambda *_: True, "conv3x3_window_cuda": lambda *a: calls.append(a)}
    )
    monkeypatch.setattr(_native, "_module", module())
    monkeypatch.setattr(_native, "get_cuda_launch_arguments", lambda tensor: (0, 0))
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
    run("window")
    assert len(calls) == 1 and len(started) == 2
    monkeypatch.setattr(module, "conv3x3_window_fits", lambda *_: False)
    run("window")  # as with "auto"
    assert len(calls) == 1 and started == 3 * ["_convolution_kernel"]
    with pytest.raises(RuntimeError, match="'winograd' was requested, but the engine runs on the CPU"):
        run("winograd")


def test_kernel_of_a_cell_on_request(fake_cuda, monkeypatch):
    """The backend is called directly, because fake tensors do not pass the dispatcher."""
    started, calls = [], []
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, **__: started.append(self.fn.__name__))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    functions = {
        "conv_gates_window_fits": lambda *_: True,
        "conv3x3_window_fits": lambda *_: True,
        "GATE_FORMULAS": {"lstm_gates": 3},
        "conv_gates_window_cuda": lambda self, *a: calls.append(a),
    }
    module = type("Module", (), functions)
    monkeypatch.setattr(_native, "_module", module())
    monkeypatch.setattr(_native, "get_cuda_launch_arguments", lambda tensor: (0, 0))
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
    tensors = make_lstm_step()
    h, c, pre = LSTM._forward(*tensors, "window", True)
    assert [t.shape[1] for t in (h, c, pre)] == [24, 24, 96] and c.dtype == torch.float32
    (call,) = calls
    assert call[:3] == (3, 0.0, 0.0) and len(call[9]) == 1 and len(call[10]) == 2 and not started
    monkeypatch.setattr(module, "conv_gates_window_fits", lambda *_: False)
    assert LSTM._prefers_triton(*tensors, "window", True)
    del module.conv_gates_window_cuda
    with pytest.raises(RuntimeError, match="'window' was requested, but this build of _fastds has no"):
        LSTM._forward(*tensors, "window", True)
