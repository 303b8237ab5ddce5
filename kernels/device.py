# SPDX-License-Identifier: Apache-2.0
"""What every launcher needs around its kernels."""

import contextlib

import torch


def on_device(tensor):
    """Context in which kernels start on the tensor's GPU and its current stream; nothing for other tensors."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
