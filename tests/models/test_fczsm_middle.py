# SPDX-License-Identifier: Apache-2.0
"""Tests of the correction of frames between input times: a step-by-step reference, context, and FC-ZSM around it."""

import pytest
import torch

from fastds.models import FCZSM
from fastds.models.baselines.advection import advect_pairs
from fastds.models.fczsm.middle import MiddleFrameCorrection
from tests.references.fczsm_middle import correct_middle

SMALL = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
GUIDED = {**SMALL, "residual": "advection", "flow_guided": True}


def perturb(model, spread=0.05):
    """Add noise to all parameters, so that none is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model.eval()


def draw_pairs(batch, r, h, w):
    """Draw middle frames, frames, context and flow in float64; context frame 0 of sample 0 is not known."""
    middle = torch.rand(batch, 1, r * h, r * w, dtype=torch.float64)
    frames, context = torch.rand(2, batch, 2, h, w, dtype=torch.float64)
    context[0, 0] = torch.nan
    return middle, frames, context, 2 * torch.randn(batch, 2, 2, h, w, dtype=torch.float64)


@pytest.mark.parametrize("r, h, w", [(2, 16, 20), (2, 13, 18), (1, 9, 12), (3, 8, 11)])
def test_equals_the_reference(r, h, w):
    model = perturb(MiddleFrameCorrection(r, widths=(8, 12, 16)).double())
    given = draw_pairs(2, r, h, w)
    parameters = dict(model.named_parameters())
    expected = correct_middle(parameters, r, *given)
    *fields, flow = given
    y = model(*fields, advect_pairs(given[1][:, :, None], r, flow[:, None]))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)
    grad_y = torch.randn_like(y)
    grads, expected = (torch.autograd.grad(z, list(parameters.values()), grad_y) for z in (y, expected))
    for name, grad, reference in zip(parameters, grads, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-7, atol=1e-8 * reference.abs().max().item(), msg=name)


def make_sequence(frames=2, h=16, w=20):
    x = torch.rand(2, frames, 1, h, w)
    return x, 2 * torch.randn(2, frames - 1, 2, 2, h, w), torch.rand(2, 2, 1, h, w)


def test_untrained_correction_changes_nothing():
    model = FCZSM(**GUIDED, middle_frame=True).eval()
    plain = FCZSM(**GUIDED).eval()
    plain.load_state_dict({key: z for key, z in model.state_dict().items() if not key.startswith("middle.")})
    x, flow, context = make_sequence(3)
    torch.testing.assert_close(model(x, flow=flow, context=context), plain(x, flow=flow), rtol=0, atol=1e-6)


def test_each_pair_of_a_sequence_has_its_neighbours_as_context():
    model = perturb(FCZSM(**GUIDED, middle_frame=True))
    x, flow, context = make_sequence(4)
    with torch.no_grad():
        y = model(x, flow=flow, context=context)
        model.config["middle_frame"] = False
        plain = model(x, flow=flow)
    assert torch.equal(y[:, ::2], plain[:, ::2])
    series = torch.cat([context[:, :1], x, context[:, 1:]], 1)[:, :, 0]
    for k in range(3):
        around = series[:, [k, k + 3]]
        with torch.no_grad():
            pair = x[:, k : k + 2]
            expected = model.middle(plain[:, 2 * k + 1], pair[:, :, 0], around, advect_pairs(pair, 2, flow[:, k, None]))
        torch.testing.assert_close(y[:, 2 * k + 1], expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(expected, plain[:, 2 * k + 1], atol=1e-3)


def test_missing_context_is_not_known_context():
    model = perturb(FCZSM(**GUIDED, middle_frame=True))
    x, flow, context = make_sequence()
    with torch.no_grad():
        unknown = model(x, flow=flow, context=torch.full_like(context, torch.nan))
        assert torch.equal(model(x, flow=flow), unknown) and unknown.isfinite().all()
        assert not torch.allclose(model(x, flow=flow, context=context), unknown, atol=1e-3)


def test_bfloat16_autocast_is_close_to_float32():
    model = perturb(FCZSM(**GUIDED, middle_frame=True), 0.01)
    x, flow, context = make_sequence()
    with torch.no_grad():
        y = model(x, flow=flow, context=context)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x, flow=flow, context=context)
    assert (low - y).abs().mean() < 0.01 * y.abs().mean()


@pytest.mark.parametrize("options", [{"residual": "trilinear"}, {"residual": None}, {"in_channels": 2}])
def test_options_that_do_not_fit_are_named(options):
    with pytest.raises(ValueError, match="middle_frame=True needs residual='advection'"):
        FCZSM(**{**GUIDED, **options}, middle_frame=True)


def test_context_of_another_shape_is_named():
    x, flow, context = make_sequence()
    with pytest.raises(ValueError, match=r"context must have shape \(2, 2, 1, 16, 20\) to go with x, got \(2, 1, 1"):
        FCZSM(**GUIDED, middle_frame=True)(x, flow=flow, context=context[:, :1])
