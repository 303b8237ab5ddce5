# SPDX-License-Identifier: Apache-2.0
"""Checks that the GPU tests share; most take an op as a function of tensors.

Checks that need a GPU do nothing for CPU tensors, which the dry run of tests/gpu/conftest.py uses.
"""

import pytest
import torch

WAIT_CYCLES = 50_000_000  # about 30 ms, longer than any launch


def dtypes(all_of_them):
    """Return dtypes as pytest parameters, of which float32 has the mark "sanitize".

    Only marked tests run under compute-sanitizer, because it is slow.
    """
    return [pytest.param(d, id=str(d), marks=[pytest.mark.sanitize] if d == torch.float32 else []) for d in all_of_them]


def moved(values, device, dtype=None):
    """Move tensors to the device with their layout; None stays None."""
    return [v if v is None else v.to(device, dtype or v.dtype) for v in values]


def leaves(values):
    return [v if v is None else v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in values]


def value_and_gradients(function, tensors):
    """Return the output and the gradients of all tensors.

    The gradient of the output is sin(0), sin(1), ..., which is the same on every device.
    """
    tracked = leaves(tensors)
    y = function(*tracked)
    grad_y = torch.arange(y.numel(), dtype=torch.float64).sin().reshape(y.shape).to(y)  # the same on every device
    return [y.detach(), *torch.autograd.grad(y, [t for t in tracked if t is not None], grad_y)]


def same(first, second):
    assert len(first) == len(second)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.shape == b.shape and torch.equal(a, b), f"tensor {i}: difference up to {(a - b).abs().max():.3e}"


def close(got, exact, tolerance):
    """Check the errors of results against float64 results.

    Args:
        got: tensors to check.
        exact: float64 tensors on the CPU.
        tolerance: largest error relative to the largest absolute value of the tensor, or to 1 if that is smaller.
    """
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
    """Check that repeated runs with torch.use_deterministic_algorithms(True) are bitwise equal."""
    torch.use_deterministic_algorithms(True)
    try:
        first = value_and_gradients(function, tensors)
        for _ in range(3):
            same(first, value_and_gradients(function, tensors))
    finally:
        torch.use_deterministic_algorithms(False)


def check_stream(function, tensors):
    """Check that the kernels run on the current CUDA stream and see inputs that were written on it."""
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
    """Check that a CUDA graph of forward and backward gives eager results for new inputs in the same memory."""
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
    """Check that torch.compile(fullgraph=True) gives the values and gradients of eager execution."""
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
    """Check that misaligned and strided inputs do not change the results."""

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
