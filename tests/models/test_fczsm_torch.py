# SPDX-License-Identifier: Apache-2.0
"""Tests of FC-ZSM with torch.compile, export, copies, threads and forced convolution algorithms."""

import copy
import io

import pytest
import torch

import fastds
from fastds.models import FCZSM

SMALL = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
# No block twice: a graph of each takes torch seconds.
TINY = {"num_features": 4, "offset_groups": 1, "extractor_blocks": 0, "reconstruction_blocks": 1}


def network(**options) -> FCZSM:
    model = FCZSM(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def gradients(model, run, *inputs):
    model.zero_grad()
    y = run(*inputs)
    y.square().mean().backward()
    return y.detach(), [p.grad.clone() for p in model.parameters()]


def test_compiles_to_one_graph_with_gradients():
    """The network has both kinds of alignment and the static branch."""
    torch.compiler.reset()
    model = network(**TINY, alignment="pcd", lstm_alignment="plain", static_channels=1)
    inputs = torch.rand(1, 2, 1, 16, 16), torch.rand(1, 16, 16)
    y, grads = gradients(model, model, *inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y_compiled, grads_compiled = gradients(model, compiled, *inputs)
    torch.testing.assert_close(y_compiled, y)
    for ours, want in zip(grads_compiled, grads, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_export():
    model = network(**TINY, static_channels=1, lstm_alignment="plain").eval()
    inputs = torch.rand(1, 2, 1, 14, 17), torch.rand(1, 14, 17)
    program = torch.export.export(model, inputs)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "fastds.deform_conv2d.default" in targets and "fastds.conv3x3.default" in targets
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    again = torch.export.load(buffer).module()
    torch.testing.assert_close(again(*inputs), model(*inputs))


def test_copies_share_no_cache():
    model = network(static_channels=1).eval()
    x, static = torch.rand(1, 2, 1, 8, 8), torch.rand(1, 8, 8)
    with torch.no_grad():
        y = model(x, static)
        other = copy.deepcopy(model)
        assert other.static_branch._cache is None
        assert torch.equal(other(x, static), y)


def test_repeatable_and_independent_of_the_thread_count():
    model, x = network().eval(), torch.rand(1, 2, 1, 40, 40)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            with torch.no_grad(), fastds.use_conv_algorithm("winograd"):
                outputs.append(model(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[1], outputs[2])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)  # oneDNN's 1x1 and strided convolutions


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
def test_convolution_algorithms_agree(algorithm):
    """The error against float64 is as small with Winograd as with direct convolutions."""
    model, x = network(num_features=16).eval(), torch.rand(1, 2, 1, 24, 24)
    with torch.no_grad():
        with fastds.use_conv_algorithm(algorithm):
            y = model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert (y - exact).abs().max() < 2e-5 * exact.std()


def test_backends_agree():
    model, x = network().eval(), torch.rand(1, 2, 1, 16, 16)
    with torch.no_grad():
        y = model(x)
        with fastds.use_backend("reference"):
            torch.testing.assert_close(model(x), y, rtol=0, atol=1e-5)
