# SPDX-License-Identifier: Apache-2.0
"""Selection of the kernels of deform_conv2d on a GPU, by the times of kernel_times.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.deform_conv2d import fused, kernel_times, two_passes
from fastds.ops.impl.deform_conv2d.kernel_times import KernelTime, rank_kernels
from fastds.ops.impl.deform_conv2d.launch_args import count_groups, make_dims

# Kernels of deform_conv2d that also have the options of the guided op: name -> function that computes a forward pass.
SAMPLING_KERNELS = {"two passes": two_passes.compute, "fused": fused.compute}

_two_passes, _fused = ProcessSetting(None), ProcessSetting(False)


@contextmanager
def use_two_passes(enabled: bool) -> Iterator[None]:
    """Compute native deform_conv2d and its gradients in two passes inside the block, or never.

    Args:
        enabled: bool. True raises RuntimeError for calls that the two passes cannot compute.
    """
    with _two_passes.set(enabled):
        yield


@contextmanager
def use_fused() -> Iterator[None]:
    """Compute native deform_conv2d by the kernel "fused" inside the block, see fused.py; gradients do not change.

    Calls that the kernel cannot compute raise RuntimeError.
    """
    with _fused.set(True):
        yield


def can_use_shared_memory(input, offset, weight, mask, stride, padding, dilation) -> bool:
    """Return True if the CUDA C++ forward kernel can sample from a tile of the input in shared memory.

    Among other conditions, this needs 16-bit tensors with channel stride 1, 16 to 64 channels in a group and sums of at
    most 608 terms.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        mask: (B, G * K, H', W') or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
    """
    has_address = type(input) in (Tensor, torch.nn.Parameter)  # fake tensors have none
    if native.get_missing_reason() is not None or not native.runs_on_cuda(input) or not has_address:
        return False
    if input.stride(1) != 1 or offset.stride(1) != 1 or not hasattr(native.get_module(), "deform_conv2d_window_fits"):
        return False
    groups, offset_groups = count_groups(input, offset, weight)
    dims = make_dims(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups)
    addresses = (native.get_address(t) for t in (input, offset, weight))
    return native.get_module().deform_conv2d_window_fits(*addresses, dims, native.get_cuda_launch_arguments(input)[0])


def prefers_triton(input, weight) -> bool:
    """Return True if the Triton kernels are preferred to those in CUDA C++.

    The Triton kernels use tensor cores, and are preferred on a GPU if the channels of a group fill a tile, except in
    float64. For float32 they compute each product as three tf32 products, which is about as accurate.
    """
    if not input.is_cuda or input.dtype == torch.float64:
        return False
    return weight.shape[1] >= 16 and weight.shape[0] * weight.shape[1] >= 16 * input.shape[1]  # outputs of one group


def rank_forward_kernels(
    input, offset, weight, bias, stride, padding, dilation, mask, *, native_only: bool = False, list_all: bool = False
) -> tuple[KernelTime, ...]:
    """Return the times of the kernels that can compute a forward pass, the kernel to run first.

    Args:
        input: (B, C, H, W), on a GPU.
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        bias: not used.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
        mask: (B, G * K, H', W') or None.
        native_only: whether to leave out the Triton kernel.
        list_all: whether to list the kernel "fused" although it runs only on request, which takes time.

    Raises:
        RuntimeError: use_two_passes(True) or use_fused() is active and that kernel cannot compute the call.
    """
    fused_arguments = (input, offset, weight, mask, stride, padding)
    if _fused.value:
        if (reason := fused.get_unsupported_reason(*fused_arguments)) is not None:
            raise RuntimeError(f"the fused kernel of deform_conv2d was requested, but cannot run: {reason}")
        return _rank_kernels(["fused"], input, offset, weight, backward=False)
    if input.dtype == torch.float64:
        return (KernelTime("plain", 0.0, False),)
    kernels = [_get_native_kernel(input, offset, weight, mask, stride, padding, dilation)]
    if not native_only and prefers_triton(input, weight) and triton_loader.unsupported_reason(input) is None:
        kernels.append("triton")
    may_run = list_all or "fused" not in kernel_times.UNTRIED
    if may_run and fused.get_unsupported_reason(*fused_arguments) is None:
        kernels.append("fused")
    return _rank_with_two_passes(kernels, input, offset, weight, mask, stride, padding, backward=False)


def rank_backward_kernels(
    grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad, *, native_only: bool = False
) -> tuple[KernelTime, ...]:
    """Return the times of the kernels that can compute a backward pass, the kernel to run first.

    Args:
        grad_y: (B, O, H', W'), on a GPU.
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: not used.
        mask: (B, G * K, H', W') or None.
        needs_grad: whether input, offset, weight, bias and mask need gradients.
        native_only: whether to leave out the Triton kernels.

    Raises:
        RuntimeError: use_two_passes(True) is active and the two passes cannot compute the call.
    """
    if input.dtype == torch.float64:
        return (KernelTime("plain", 0.0, False),)
    kernels = ["plain"]
    reason = triton_loader.atomic_unsupported_reason(grad_y, needs_grad[0])
    if not native_only and prefers_triton(input, weight) and reason is None:
        kernels.append("triton")
    return _rank_with_two_passes(kernels, input, offset, weight, mask, stride, padding, backward=True)


def _rank_with_two_passes(kernels, input, offset, weight, mask, stride, padding, *, backward) -> tuple[KernelTime, ...]:
    """Return the times of the kernels and of the two passes if they can run, the kernel to run first."""
    if _two_passes.value is not False:
        reason = _get_two_passes_reason(input, offset, weight, mask, stride, padding)
        if _two_passes.value and reason is not None:
            raise RuntimeError(f"the two passes of deform_conv2d were requested, but cannot run: {reason}")
        if reason is None:
            kernels = ["two passes"] if _two_passes.value else [*kernels, "two passes"]
    return _rank_kernels(kernels, input, offset, weight, backward=backward)


def _rank_kernels(kernels, input, offset, weight, *, backward) -> tuple[KernelTime, ...]:
    groups, _ = count_groups(input, offset, weight)
    pixels, taps = offset.shape[0] * offset.shape[2] * offset.shape[3], weight.shape[2] * weight.shape[3]
    bits = 8 * input.element_size()
    return rank_kernels(tuple(kernels), bits, pixels, taps, input.shape[1], weight.shape[0], groups, backward)


def _get_native_kernel(input, offset, weight, mask, stride, padding, dilation) -> str:
    """Return the name of the kernel in one pass that the native backend would run."""
    if input.element_size() != 2:
        return "plain"
    if can_use_shared_memory(input, offset, weight, mask, stride, padding, dilation):
        return "window"
    groups = input.shape[1] // weight.shape[1]
    packs = weight.shape[1] % 8 == 0 and weight.shape[1] >= 16 and weight.shape[0] // groups >= 16
    return "tensor cores" if packs else "plain"


def _get_two_passes_reason(input, offset, weight, mask, stride, padding) -> str | None:
    if native.get_missing_reason() is not None or not hasattr(native.get_module(), "deform_conv2d_sample_cuda"):
        return "fastds was not built with CUDA"
    return two_passes.get_unsupported_reason(input, offset, weight, mask, stride, padding)


def forward_prefers_triton(input, *args) -> bool:
    """Return True if the Triton kernel is preferred for the forward pass; see rank_forward_kernels."""
    return input.is_cuda and rank_forward_kernels(input, *args)[0].kernel == "triton"


def select_native_forward(input, *args) -> str:
    """Return the name of the kernel of the native backend for the forward pass; see rank_forward_kernels."""
    return rank_forward_kernels(input, *args, native_only=True)[0].kernel


def backward_prefers_triton(grad_y, *args) -> bool:
    """Return True if the Triton kernels are preferred for the backward pass; see rank_backward_kernels."""
    return grad_y.is_cuda and rank_backward_kernels(grad_y, *args)[0].kernel == "triton"


def backward_uses_two_passes(grad_y, *args) -> bool:
    """Return True if the native backend computes the backward pass in two passes; see rank_backward_kernels."""
    return rank_backward_kernels(grad_y, *args, native_only=True)[0].kernel == "two passes"


def describe_forward(input, offset, weight, bias, stride, padding, dilation, mask) -> dict[str, str]:
    """Return the entries of fastds.explain with the times of the kernels, for tensors on a GPU."""
    if not input.is_cuda:
        return {}
    times = rank_forward_kernels(input, offset, weight, bias, stride, padding, dilation, mask, list_all=True)
    backward = describe_backward(input, input, offset, weight, stride, padding, dilation, mask, [True] * 5)
    return {"kernels": "; ".join(map(str, times)), "kernels of gradients": backward["kernels"]}


def describe_backward(grad_y, *args) -> dict[str, str]:
    """Return the entry of fastds.explain for the backward pass with the times of the kernels, for tensors on a GPU."""
    return {"kernels": "; ".join(map(str, rank_backward_kernels(grad_y, *args)))} if grad_y.is_cuda else {}
