# SPDX-License-Identifier: Apache-2.0
"""Tests that networks run no operation that a CUDA graph cannot capture."""

import numpy as np
import pytest
import torch
from gpuless.fake_cuda import HostWorkError, Watched, on_cuda
from torch.utils._pytree import tree_leaves

from fastds import models
from fastds.models.graph import capture_mode, freeze_model
from fastds.models.registry import PRESETS

# Every cell of recurrent networks runs in one of them here, and in two modules in the training; the rest is alike.
RUN = [n for n in models.available() if n[:3] not in ("db-", "ms-") or "convgru" in n or n[:3] + n[-6:] == "ms--small"]
RUN += ["ms-lstm"]
NOWCASTERS = ("DBRNN", "MSRNN", "StagedRNN", "SimVP", "MLCastConvGRU")
# Presets whose training is tested: one of those that differ in size only.
TRAINED = [n for n in models.available() if not n.endswith(("-small", "-s", "-parity256")) and not n.startswith("ms-")]
TRAINED += ["ms-lstm", "nowcast-small", "fczsm-small", "wgan-gp-small"]


def arguments(name, model, device="cuda"):
    """Return the arguments of the forward pass of a preset."""
    kind, c = PRESETS[name][0], model.config

    def draw(*shape):
        return torch.rand(shape, device=device)

    if kind == "FCZSM":
        static = draw(c["static_channels"], 16, 20) if c["static_channels"] else None
        return draw(1, 2, c["in_channels"], 16, 20), static, draw(1, 1, 2, 2, 16, 20)
    if kind == "LagrangianRNN":
        return draw(1, 3, 1, 32, 32), 2, draw(1, 2, 32, 32)
    if kind in NOWCASTERS:
        return draw(1, getattr(model, "frames", 2), 1, 32, 32), 2
    if kind == "INRDownscaler":
        return draw(1, c["in_channels"], 12, 16), (20, 31)
    if kind == "ErrorLaw":
        return (draw(c["features"], 16, 20),)
    if kind == "FixedRatioDownscaler":
        return (draw(1, c["in_channels"], 12, 16),)
    return (draw(1, 2, c.get("channels") or c["in_channels"], 8, 8),)


@pytest.mark.parametrize("name", RUN)
def test_forward_stays_on_the_device(name, fake_cuda):
    model = on_cuda(name)
    given, model = arguments(name, model), freeze_model(model, torch.bfloat16)
    with Watched() as seen, torch.no_grad(), capture_mode(torch.bfloat16):
        y = model(*given)
    assert seen.calls and all(z.is_cuda for z in tree_leaves(y))


@pytest.mark.parametrize("name", TRAINED)
def test_training_step_stays_on_the_device(name, monkeypatch):
    autocast = torch.autocast  # which knows no meta tensors
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu" if kind == "meta" else kind, *a, **k))
    model = models.create(name).train().to("meta")
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = False  # it knows maps by their addresses, which meta tensors have not
    given = arguments(name, model, "meta")
    with Watched(), capture_mode(torch.float32):
        sum(z.square().mean() for z in tree_leaves(model(*given))).backward()
    assert any(p.grad is not None for p in model.parameters())


PLANTED = {
    "torch.tensor": lambda x: x + torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x + x.new_tensor([1.0]),
    "numpy": lambda x: x + torch.from_numpy(np.ones(1)).to(x.device),
    "item": lambda x: x + x.sum().item(),
    "if": lambda x: x if x.sum() > 0 else -x,
    "cpu": lambda x: x.cpu().to(x.device),
    "tolist": lambda x: x * len(x.flatten().tolist()),
    "list as index": lambda x: x[..., [0, 1]],
    "mask as index": lambda x: x[x > 0],
    "mask that is set": lambda x: x.clone().masked_fill_(x > 0, 0).index_put_((x > 1,), x.new_zeros(())),
    "copy_": lambda x: torch.empty(x.shape).copy_(x),
}
ALLOWED = {
    "arange": lambda x: x + torch.arange(x.shape[-1], device=x.device),
    "full": lambda x: x + torch.full((1,), 2.0, device=x.device),
    "number": lambda x: torch.where(x > 1, x, 0.0) + torch.tensor(2.0),
    "slices": lambda x: x[..., 1:].clone(),
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_device_errors_are_detected(what, fake_cuda):
    with pytest.raises(HostWorkError), Watched():
        PLANTED[what](torch.rand(2, 3, device="cuda"))


@pytest.mark.parametrize("what", ALLOWED)
def test_capturable_forwards_pass(what, fake_cuda):
    with Watched():
        ALLOWED[what](torch.rand(2, 3, device="cuda"))


def test_host_work_in_a_network_is_detected(fake_cuda, monkeypatch):
    model = on_cuda("srcnn")
    model.convs[0].register_forward_hook(lambda module, inputs, y: y * torch.tensor([2.0], device=y.device))
    with pytest.raises(HostWorkError, match="copies between host and device"), Watched():
        model(torch.rand(1, 1, 8, 8, device="cuda"))


def test_multi_input_bias_is_added_once(fake_cuda):
    """A frozen copy of a model sums the biases of its inputs beforehand. The model itself keeps both."""
    model = on_cuda("db-predrnn")
    copy = freeze_model(model, torch.bfloat16)
    with Watched() as seen, torch.no_grad(), capture_mode(torch.bfloat16):
        copy(*arguments("db-predrnn", model))
    assert not [func for func, *_ in seen.calls if func is torch.ops.aten.sum.dim_IntList]
    gates, summed = (network.forecaster.cells[0].gates for network in (model, copy))
    assert gates.bias.shape == (2, 96) and summed.bias.shape == (96,)
