# SPDX-License-Identifier: Apache-2.0
"""Tests of how compile_graph reads arguments and which arguments it refuses."""

import pytest
import torch

import fastds
from fastds.models import create
from fastds.models.graph import Arguments, capture_mode, freeze_model, resolve_arguments

SMALL = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
CPU = torch.device("cpu")


def test_compile_graph_rejects_non_models_and_other_devices():
    model, x = create("fczsm", **SMALL), torch.zeros(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match="dtype must be None, torch.bfloat16, .* got torch.float64"):
        model.compile_graph(x, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be on a CPU or a CUDA device to be captured as a graph, it is on meta"):
        fastds.compile_graph(model.to("meta"), x)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got function"):
        fastds.compile_graph(create, x)


def test_graph_rejects_arguments_unlike_the_captured():
    held = Arguments((torch.zeros(1, 3), 4), {"flow": None}, CPU)
    new = torch.ones(1, 3)
    (tensor,) = held.extract_tensors((new, 4), {"flow": None})
    assert tensor is new and held.replace_tensors([new])[1] == {"flow": None}
    for args, kwargs, message in (
        ((torch.ones(1, 2), 4), {"flow": None}, r"input 0 is a torch.float32 tensor of shape \(1, 2\), the graph was"),
        ((new.double(), 4), {"flow": None}, "input 0 is a torch.float64 tensor"),
        ((new, 5), {"flow": None}, "input 1 is 5, the graph was captured for 4"),
        ((new, 4), {"flow": new}, "input 2 is a torch.float32 tensor .*, the graph was captured for None"),
        ((new,), {"flow": None}, "the arguments must be those the graph was captured for"),
    ):
        with pytest.raises(ValueError, match=message):
            held.extract_tensors(args, kwargs)
    with pytest.raises(ValueError, match="input 0 is on cpu, expected cuda:0, the device of the model"):
        Arguments((new,), {}, torch.device("cuda", 0))


@pytest.mark.parametrize("name", ["fczsm-small", "nowcast-small"])
def test_cpu_work_is_done_before_capture(name):
    """Optical flow and masks of missing values are computed before the capture and become arguments."""
    model = fastds.load(name).eval()
    x = torch.rand(1, 3, 1, 32, 32)
    if name == "nowcast-small":
        x[0, 1, 0, 4:6] = float("nan")
    args, kwargs = resolve_arguments(model, (x,), {})
    assert any(z is not x and isinstance(z, torch.Tensor) for z in args)
    with torch.no_grad(), capture_mode(torch.float32):
        y = freeze_model(model, torch.float32)(*args, **kwargs)
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


def test_graph_keeps_precision_of_means_in_kelvin():
    model = create("inr-small")
    model.mean.fill_(280.3)
    copy = freeze_model(model, torch.bfloat16)
    assert torch.equal(copy.mean, model.mean) and copy.mean.dtype == torch.float32
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
