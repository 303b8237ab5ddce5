# SPDX-License-Identifier: Apache-2.0
"""Tests of the faults that `python -m tests.fuzz` found, one test for each."""

import pytest
import torch

import fastds
from fastds import ops
from fastds.ops import GridSpec, PointSpec


def maps(channels=4, batch=2, size=(5, 6)):
    return torch.randn(batch, channels, *size).contiguous(memory_format=torch.channels_last)


def negated(*shape):
    """Return ones as a view with the negative bit of torch, whose memory contains -1."""
    return torch.complex(torch.zeros(shape), -torch.ones(shape)).conj().imag


CENTRE = PointSpec(torch.tensor([[[1, 1]]], dtype=torch.int32), torch.zeros(1, 1, 2))
ONE = {  # calls of one tensor of one element
    "null_op": ((1,), ops.null_op),
    "lstm_gates c": ((1, 1, 1, 1), lambda t: ops.lstm_gates(torch.zeros(1, 4, 1, 1), t)[1]),
    "pixel_shuffle x": ((1, 1, 1, 1), lambda t: ops.pixel_shuffle(t, 1)),
    "conv3x3 bias": ((1,), lambda t: ops.conv3x3(torch.zeros(1, 4, 5, 6), torch.zeros(1, 4, 3, 3), t)),
    "cell bias": ((1,), lambda t: ops.conv_output_gate(*zeros(2, 2, 1), torch.zeros(1, 4, 3, 3), t)),
    "pixel_shuffle bias": ((1,), lambda t: ops.pixel_shuffle(torch.zeros(1, 1, 2, 2), 1, t)),
    "deform weight": ((1, 1, 1, 1), lambda t: deform(t, None)),
    "deform bias": ((1,), lambda t: deform(torch.ones(1, 1, 1, 1), t)),
    "inr_query bias": ((1,), lambda t: ops.inr_query(torch.zeros(1, 1, 3, 3), CENTRE, ensemble="late", bias=t)),
}


def zeros(*channels):
    return [torch.ones(1, c, 5, 6) for c in channels]


def deform(weight, bias):
    return ops.deform_conv2d(torch.ones(1, 1, 3, 3), torch.zeros(1, 2, 3, 3), weight, bias)


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
def test_lazily_negated_single_element(name, algorithm, native):
    import fastds

    shape, function = ONE[name]
    assert negated(*shape).is_contiguous() and negated(*shape).is_neg()
    with fastds.use_conv_algorithm(algorithm):
        torch.testing.assert_close(function(negated(*shape)), function(torch.ones(shape)), rtol=0, atol=0)


def gru(**changed):
    named = {
        "x": maps(3), "h": maps(), "gates_weight": torch.ones(8, 7, 3, 3), "gates_bias": torch.ones(8),
        "candidate_weight": torch.ones(4, 7, 3, 3), "candidate_bias": torch.ones(4),
    }  # fmt: skip
    return ops.conv_gru_cell(**(named | changed))


WEIGHTS = {"gates_weight": torch.ones(8, 4, 3, 3), "candidate_weight": torch.ones(4, 4, 3, 3), "x": None}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "changed,text",
    [
        ({"h": 0.5}, "h is a float, expected a Tensor"),
        ({"gates_weight": torch.ones(8, 7, 1, 3)}, r"gates_weight has shape \(8, 7, 1, 3\), expected \(8, 7, 3, 3\)"),
        ({"gates_bias": torch.ones(1)}, r"gates_bias has shape \(1,\), expected \(8,\)"),
        ({"candidate_weight": torch.ones(4, 7, 0, 3)}, r"candidate_weight has shape .*, expected \(4, 7, 3, 3\)"),
        ({"candidate_weight": torch.ones(8, 7, 3, 3)}, r"candidate_weight has shape .*, expected \(4, 7, 3, 3\)"),
        ({"candidate_weight": torch.ones(9)}, r"candidate_weight has shape \(9,\), expected 4 dimensions"),
        ({"candidate_bias": 3}, "candidate_bias is an int, expected a Tensor"),
        ({"h": maps().to_sparse()}, "h is a tensor of layout torch.sparse_coo"),
        ({"candidate_bias": torch.ones(4).to_sparse()}, "candidate_bias is a tensor of layout torch.sparse_coo"),
        ({**WEIGHTS, "shares": (maps(8, 1), maps())}, r"shares\[0\] has shape \(1, 8, 5, 6\), expected \(2, 8, 5, 6\)"),
        ({**WEIGHTS, "shares": (maps(8), maps(3))}, r"shares\[1\] has shape"),
        ({**WEIGHTS, "shares": 2.5}, "shares must be a pair of tensors, .*, got 2.5"),
        ({**WEIGHTS, "shares": (maps(8),)}, "shares must be a pair of tensors"),
    ],
)
def test_conv_gru_cell_names_its_own_arguments(changed, text, grad, native):
    with torch.set_grad_enabled(grad), pytest.raises((TypeError, ValueError), match=f"^{text}"):
        gru(**({"x": maps(3).requires_grad_(grad)} | changed))


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda x, w: ops.conv_lstm_cell(x, x.to_sparse(), x, w), TypeError, "h is a tensor of layout"),
        (lambda x, w: ops.conv_lstm_cell(x, None, x, w.to_sparse()), (TypeError, ValueError), "weight "),
        (lambda x, w: ops.deform_conv2d(x, x, w, stride=[]), ValueError, r"stride must be .*, got \(\)"),
        (lambda x, w: ops.deform_conv2d(x, x, w, padding=True), ValueError, "padding must be .*, got True"),
        (lambda x, w: ops.conv3x3(x, w[:, :4], residual=x, out_dtype="no"), ValueError, "out_dtype must be .*, got no"),
    ],
)
def test_errors_name_the_argument(call, error, text, native):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(error, match=text):
        call(maps(), torch.ones(16, 8, 3, 3))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "changed,text",
    [
        ({"maps": torch.ones(1, 4, 3, 3).to_sparse()}, "maps is a tensor of layout torch.sparse_coo"),
        ({"trunk": [(torch.ones(2, 2), torch.ones(2).to_sparse())]}, r"trunk\[0\] bias is a tensor of layout"),
        ({"heads": True}, "early_attn needs heads in 1..64 and dk >= 1, got True and 1"),
    ],
)
def test_inr_query_names_its_own_arguments(changed, text, backend, grad, native):
    arguments = {"maps": torch.ones(1, 4, 3, 3), "where": GridSpec.cells((3, 3), (2, 2)), "heads": 1, "dk": 1}
    with fastds.use_backend(backend), torch.set_grad_enabled(grad), pytest.raises((TypeError, ValueError), match=text):
        ops.inr_query(**(arguments | changed))


def test_inr_query_of_no_points_takes_no_sparse_maps(native):
    nowhere = PointSpec(torch.zeros(1, 0, 2, dtype=torch.int32), torch.zeros(1, 0, 2))
    with pytest.raises(TypeError, match="maps is a tensor of layout torch.sparse_coo"):
        ops.inr_query(torch.ones(1, 4, 3, 3).to_sparse(), nowhere, ensemble="none")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_all_corners_of_the_skip_invalid(backend, native):
    mask = torch.tensor([[[False, True], [True, True]]])
    features = torch.ones(1, 2, 2, 2).requires_grad_()
    point = PointSpec(torch.zeros(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2))
    options = {"ensemble": "early_area", "mask": mask, "skip": torch.ones(1, 2, 2, 2), "compat": "liif"}
    with ops.core.backends.use_backend(backend):
        y = ops.inr_query(features, point, **options)
        y.nan_to_num(0).sum().backward()
    assert y.isnan().all() and (features.grad == 0).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_attention_with_all_logits_minus_infinity(backend, native):
    features = torch.ones(1, 4, 3, 3)
    features[:, 2] = -float("inf")  # keys; the contents are 1
    with ops.core.backends.use_backend(backend):
        y = ops.inr_query(features, GridSpec.cells((3, 3), (2, 2)), heads=1, dk=1)
    assert y.isnan().all()
