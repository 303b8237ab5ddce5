# SPDX-License-Identifier: Apache-2.0
"""Tests of torch.compile on networks: one graph for the forward, and gradients as in eager mode."""

import warnings

import pytest
import torch

from fastds.models import create
from fastds.models.export.signatures import build_signature

# Small networks of the families; FC-ZSM is in test_fczsm_torch.py. The optical flow of fczsm-small and nowcast-small is
# computed in numpy before the network, which is not traced: see prepare_inputs.
NETWORKS = {
    "ms-convlstm": {"hidden": 8},
    "wgan-gp": {"width": 8, "post_width": 8, "pre_blocks": 1, "post_blocks": 1, "scale": 2, "reduction": 2},
    "inr-small": {},
    "edsr-x2": {},
    "mlcast-convgru": {"num_blocks": 1},
    "unet-32": {"width": 4},
    "simvp": {"spatial": 8, "temporal": 16, "blocks": 2, "groups": 2},
}
STATIC_ONLY = ("ms-convlstm", "simvp")  # tracing with symbolic shapes takes minutes


def trace(name, dynamic):
    model = create(name, **NETWORKS[name]).eval()  # batch normalisation keeps its statistics
    steps = {"steps": 1} if hasattr(model, "forecast") else {}
    given = build_signature(model, **steps)
    inputs = given.draw({"batch": 1, "height": 8, "width": 8, "points": 20}, seed=1)
    compiled = torch.compile(given.module, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    return model, given.module, compiled, inputs


def gradients(function, model, inputs):
    outputs = [y for y in torch.utils._pytree.tree_leaves(function(*inputs)) if y.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return outputs, torch.autograd.grad([y.square().sum() for y in outputs], parameters, allow_unused=True)


@pytest.mark.parametrize(
    ("name", "dynamic"), [(n, False) for n in NETWORKS] + [(n, True) for n in NETWORKS if n not in STATIC_ONLY]
)
def test_networks_compile_as_one_graph(name, dynamic):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, module, compiled, inputs = trace(name, dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = gradients(compiled, model, inputs)
    expected = gradients(module, model, inputs)
    for part, other in zip(got, expected, strict=True):
        for a, b in zip(part, other, strict=True):
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
