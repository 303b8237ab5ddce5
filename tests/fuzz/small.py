# SPDX-License-Identifier: Apache-2.0
"""Small random tensors for recorded calls."""

import torch

B, C, H, W = 2, 4, 5, 6


def maps(channels=C, batch=B, size=(H, W), grad=True):
    return torch.randn(batch, channels, *size).contiguous(memory_format=torch.channels_last).requires_grad_(grad)


def weight(outputs, inputs, *kernel):
    return (torch.randn(outputs, inputs, *kernel or (3, 3)) / 6).requires_grad_()


def vector(size):
    return torch.randn(size).requires_grad_()
