# SPDX-License-Identifier: Apache-2.0
"""Tests of DB-RNN networks on a GPU: float64, bfloat16 and CUDA graphs."""

import copy

import pytest
import torch

from fastds.models.db_rnn import DBRNN

OPTIONS = {"convlstm": {}, "preciplstm": {"window": 6}, "trajgru": {"links": 3}}
STEPS = 3


@pytest.fixture(params=OPTIONS)
def case(request):
    """Return the network, the frames, and the forecasts in float64 on the CPU."""
    torch.manual_seed(3)
    model, frames = DBRNN(request.param, hidden=16, cell_options=OPTIONS[request.param]), torch.rand(1, 2, 1, 16, 24)
    with torch.no_grad():
        return model, frames, copy.deepcopy(model).double()(frames.double(), STEPS)[-1]


def close(y, exact, tolerance):
    assert (y.double().cpu() - exact).abs().max() <= tolerance * exact.abs().max()


def test_db_rnn_agrees_with_the_cpu(case, device):
    model, frames, exact = case
    model, frames = model.to(device, memory_format=torch.channels_last), frames.to(device)
    with torch.no_grad():
        close(model(frames, STEPS)[-1], exact, 1e-3)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            close(model(frames, STEPS)[-1], exact, 0.1)


def test_db_rnn_cuda_graph(case, gpu):
    model, frames, _ = case
    model, frames = model.to(gpu, memory_format=torch.channels_last), frames.to(gpu)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(frames, STEPS)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            captured = model(frames, STEPS)[-1]
        frames.copy_(frames.flip(3))
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(captured, model(frames, STEPS)[-1], rtol=1e-4, atol=1e-4)


def test_db_rnn_training_step(case, device):
    """Gradients on the GPU have the direction of those on the CPU."""
    model, frames, exact = case
    truth = exact.float().flip(3)

    def gradients(model, frames, truth):
        loss = torch.nn.functional.mse_loss(model(frames, STEPS)[-1], truth)
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return torch.cat([g.flatten().float().cpu() for g in grads if g is not None])

    expected = gradients(model, frames, truth)
    model.to(device, memory_format=torch.channels_last)
    got = gradients(model, frames.to(device), truth.to(device))
    assert torch.nn.functional.cosine_similarity(got, expected, 0) > 0.999
