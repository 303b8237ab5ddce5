# SPDX-License-Identifier: Apache-2.0
"""Tests of FC-ZSM on a GPU: float32, bfloat16 and CUDA graphs."""

import copy

import pytest
import torch

from fastds.models import create


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = create("fczsm", num_features=32, offset_groups=4, extractor_blocks=1, reconstruction_blocks=2)
    for name, parameter in model.named_parameters():
        if "conv_offset_mask" in name:
            torch.nn.init.normal_(parameter, std=1.0 if parameter.ndim == 1 else 0.05)
    return model


@pytest.fixture
def expected(model):
    """Return the input, and the output in float64 on the CPU."""
    x = torch.rand(1, 2, 1, 30, 33)
    with torch.no_grad():
        return x, copy.deepcopy(model).double()(x.double())


def test_float32_agrees_with_the_cpu(model, expected, device):
    x, exact = expected
    with torch.no_grad():
        y = model.to(device, memory_format=torch.channels_last)(x.to(device))
    assert (y.double().cpu() - exact).abs().max() <= 5e-3 * exact.abs().max()  # cuDNN may use tf32


def test_bfloat16_autocast_and_graph(model, expected, gpu):
    x, exact = expected
    model.to(gpu, memory_format=torch.channels_last)
    x = x.to(gpu)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        eager = model(x).float()
    fast = model.compile_graph(torch.zeros_like(x))
    replayed = fast(x)
    assert torch.equal(replayed, fast(x))
    for y in (eager, replayed.float()):
        assert (y.double().cpu() - exact).abs().max() <= 5e-2 * exact.abs().max()
    other = fast(x.flip(1))
    assert not torch.equal(other, replayed) and torch.equal(fast(x), replayed)


def test_graph_rejects_other_inputs(model, gpu):
    model.to(gpu)
    x = torch.rand(1, 2, 1, 16, 16, device=gpu)
    fast = model.compile_graph(x, dtype=torch.float32)
    with pytest.raises(ValueError, match="input 0 is a .* tensor of shape .*, the graph was captured for"):
        fast(torch.rand(1, 2, 1, 16, 20, device=gpu))
    with pytest.raises(ValueError, match="input 0 is on cpu, expected cuda:0"):
        model.compile_graph(x.cpu())


def test_fczsm_training_step(model, device):
    """Gradients in bfloat16 have the direction of the float32 gradients on the CPU."""
    x, truth = torch.rand(1, 2, 1, 16, 20), torch.rand(1, 3, 1, 32, 40)

    def gradients(model, x, truth):
        loss = torch.nn.functional.mse_loss(model(x).float(), truth)
        return torch.cat([g.flatten().float().cpu() for g in torch.autograd.grad(loss, list(model.parameters()))])

    exact = gradients(model, x, truth)
    model.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours = gradients(model, x.to(device), truth.to(device))
    assert torch.nn.functional.cosine_similarity(ours, exact, 0) > 0.98
