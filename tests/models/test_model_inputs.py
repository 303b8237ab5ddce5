# SPDX-License-Identifier: Apache-2.0
"""Tests of the errors for inputs of a wrong dtype or shape, and of empty batches."""

import pytest
import torch

from fastds import models

NETWORKS = {
    "fczsm-small": ((1, 2, 1, 8, 8), lambda m, x: m(x)),
    "unet-32": ((1, 2, 1, 16, 16), lambda m, x: m(x)),
    "nowcast-small": ((1, 2, 1, 16, 16), lambda m, x: m.forecast(x, steps=1)),
    "ms-convlstm-small": ((1, 2, 1, 16, 16), lambda m, x: m.forecast(x, steps=1)),
    "inr-small": ((1, 4, 6, 7), lambda m, x: m(x, (9, 8))),
    "inr-any": ((1, 1, 6, 7), lambda m, x: m(x, (9, 8))),
    "ciaosr": ((1, 4, 6, 7), lambda m, x: m(x, (9, 8))),
    "lte": ((1, 4, 6, 7), lambda m, x: m(x, (9, 8))),
    "wgan-gp-small": ((1, 2, 1, 4, 4), lambda m, x: m(x, noise="zero")),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """Return a network, an input and a function that calls it."""
    shape, call = NETWORKS[request.param]
    options = {"width": 2} if request.param == "unet-32" else {}
    return models.create(request.param, **options).eval(), torch.rand(shape), call


def test_models_reject_inputs_of_another_type(network):
    model, x, call = network
    for wrong, words in (
        (x.double(), "has dtype torch.float64, expected torch.float32 as the weights have"),
        ((9 * x).int(), "torch.int32"),
    ):
        with pytest.raises(TypeError, match=words):
            call(model, wrong)
    with pytest.raises(TypeError, match="has dtype torch.float32, expected torch.float64"):
        call(model.double(), x)
    with pytest.raises(ValueError, match="shape|Tensor"):
        call(model, x[0].double())


@torch.no_grad()
def test_models_with_empty_batch(network):
    model, x, call = network
    expected = call(model, x).shape[1:]
    try:
        assert call(model, x[:0]).shape == (0, *expected)
    except ValueError as error:
        assert "has no sample, expected one or more" in str(error)


@torch.no_grad()
def test_bfloat16_weights(network):
    """Rounding changes the optical flow of a random field, so these models are compared by shape only."""
    model, x, call = network
    expected = call(model, x)
    got = call(model.bfloat16(), x.bfloat16())
    assert got.shape == expected.shape
    if x.dim() == 4:
        torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)
