# SPDX-License-Identifier: Apache-2.0
"""Checks that every op must pass on a GPU in addition to correct numbers; each takes the op as function(*tensors).

On CPU tensors, as in the dry run of tests/gpu/conftest.py, checks that need a GPU are left out.
"""

import pytest
import torch

WAIT_CYCLES = 50_000_000  # about 30 ms, longer than any launch


def dtypes(all_of_them):
    """Return the dtype parameters of a test; under compute-sanitizer only float32, because it is slow."""
    return [pytest.param(d, id=str(d), marks=[pytest.mark.sanitize] if d == torch.float32 else []) for d in all_of_them]


def moved(values, device, dtype=None):
    """Move tensors to the device with their layout; None is kept."""
    return [v if v is None else v.to(device, dtype or v.dtype) for v in values]


def leaves(values):
    return [v if v is None else v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in values]


def value_and_gradients(function, tensors):
    """Return the output and the gradients of every tensor, for the output gradient sin(0), sin(1), ..."""
    tracked = leaves(tensors)
    y = function(*tracked)
    grad_y = torch.arange(y.numel(), dtype=torch.float64).sin().reshape(y.shape).to(y)  # the same on every device
    return [y.detach(), *torch.autograd.grad(y, [t for t in tracked if t is not None], grad_y)]


def same(first, second):
    assert len(first) == len(second)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.shape == b.shape and torch.equal(a, b), f"tensor {i}: up to {(a - b).abs().max():.3e} apart"


def close(got, exact, tolerance):
    """Check that every result is within a tolerance of the float64 result, relative to the largest value of the tensor
    or to 1."""
    for i, (a, b) in enumerate(zip(got, exact, strict=True)):
        error, scale = (a.double().cpu() - b).abs().max(), b.abs().max().clamp_min(1)
        assert error <= tolerance * scale, f"tensor {i}: {error:.2e} from values up to {scale:.2e}"


def check_everything(function, tensors, tolerance=1e-5):
    """Run all checks that need one GPU."""
    check_deterministic(function, tensors)
    check_stream(function, tensors)
    check_graph(function, tensors)
    check_compile(function, tensors)
    check_misaligned(function, tensors, tolerance)


def without_gpu(tensors):
    return not any(t is not None and t.is_cuda for t in tensors)


def check_deterministic(function, tensors):
    """Check that runs are bitwise equal under torch.use_deterministic_algorithms(True)."""
    torch.use_deterministic_algorithms(True)
    try:
        first = value_and_gradients(function, tensors)
        for _ in range(3):
            same(first, value_and_gradients(function, tensors))
    finally:
        torch.use_deterministic_algorithms(False)


def check_stream(function, tensors):
    """Check that kernels use the current stream: they wait for inputs that are written late."""
    if without_gpu(tensors):
        return
    with torch.no_grad():
        expected = function(*tensors)
        late = [t if t is None else torch.zeros_like(t) for t in tensors]
        function(*late)  # compiled and loaded, so that nothing below waits for it
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(WAIT_CYCLES)
            for held, value in zip(late, tensors, strict=True):
                if held is not None:
                    held.copy_(value)
            y = function(*late)
        torch.cuda.synchronize()
        assert torch.equal(y, expected)


def check_graph(function, tensors):
    """Check capture and replay of forward and backward: new inputs in the same memory give eager results."""
    if without_gpu(tensors):
        return
    held = leaves(tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def compute():
        y = function(*held)
        return [y, *torch.autograd.grad(y, [t for t in held if t is not None], torch.ones_like(y))]

    with torch.cuda.stream(stream):
        for _ in range(3):
            compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = compute()
    for _ in range(2):
        with torch.no_grad():
            for t in held:
                if t is not None:
                    t.copy_(t.flip(0) + 0.25)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(captured, compute(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def check_compile(function, tensors, rtol=1e-4):
    """Check that torch.compile(fullgraph=True) agrees with eager, with gradients."""
    if without_gpu(tensors):
        return
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, tensors), value_and_gradients(function, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


def check_other_device(function, tensors):
    """Check tensors on the second GPU while the first is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    expected = value_and_gradients(function, tensors)
    with torch.cuda.device(0):
        got = value_and_gradients(function, moved(tensors, "cuda:1"))
    for a, b in zip(got, expected, strict=True):
        assert a.device == torch.device("cuda:1")
        torch.testing.assert_close(a.to(b.device), b, rtol=1e-5, atol=1e-5)


def check_misaligned(function, tensors, tolerance=1e-5):
    """Check that storage at an odd offset and strides of a larger tensor do not change the results."""

    def shifted(t):
        wide = t.new_zeros((t.numel() + 1,))  # t is dense in some order
        return wide.as_strided(t.shape, t.stride(), 1).copy_(t)

    def sliced(t):
        if t.dim() != 4:
            return t
        wide = t.new_zeros((t.shape[0], t.shape[1] + 3, *t.shape[2:])).to(memory_format=torch.channels_last)
        return wide[:, 1:-2].copy_(t)

    with torch.no_grad():
        expected = function(*tensors)
        for change in (shifted, sliced, lambda t: t.contiguous()):
            y = function(*(t if t is None else change(t) for t in tensors))
            torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
