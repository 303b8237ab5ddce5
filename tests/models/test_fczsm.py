# SPDX-License-Identifier: Apache-2.0
"""Tests of FC-ZSM: a step-by-step reference, and properties such as time reversal."""

import pytest
import torch
import torch.nn.functional as F

from fastds.models import FCZSM, create
from fastds.models.fczsm import conv_lstm
from fastds.models.fczsm import network as fczsm_network
from fastds.models.fczsm.guidance import StaticBranch, compute_state_offsets
from fastds.nn import chunks
from tests.references.fczsm import ReferenceFCZSM, count_flops

SMALL = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}


def network(dtype=torch.float64, spread=0.05, **options) -> FCZSM:
    """Return a small network with non-zero offset convolutions."""
    model = FCZSM(**{**SMALL, **options}).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model.eval()


def inputs(model: FCZSM, batch=1, frames=2, h=16, w=20, dtype=torch.float64):
    config = model.config
    x = torch.rand(batch, frames, config["in_channels"], h, w, dtype=dtype)
    static = torch.rand(config["static_channels"], h, w, dtype=dtype) if config["static_channels"] else None
    flow = 2 * torch.randn(batch, frames - 1, 2, 2, h, w)
    return x, static, flow


@pytest.mark.parametrize(
    "options, expected",
    [
        pytest.param({}, 8_737_073, id="zsm"),
        pytest.param({"in_channels": 3}, 8_738_225, id="zsm-d"),
        pytest.param({"static_channels": 2}, 9_476_465, id="zsm-s"),
        pytest.param({"in_channels": 3, "static_channels": 2}, 9_477_617, id="zsm-ds"),
        pytest.param(
            {"in_channels": 3, "out_channels": 3, "reconstruction_blocks": 40, "scale": 4}, 11_102_771, id="original"
        ),
        pytest.param({"lstm_alignment": "plain"}, 4_521_665, id="plain-lstm"),
        pytest.param(
            {"num_features": 16, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1},
            488_301,
            id="16",
        ),
        pytest.param(
            {"num_features": 16, "offset_groups": 4, "extractor_blocks": 2, "reconstruction_blocks": 2},
            638_521,
            id="16-4",
        ),
    ],
)
def test_parameter_counts(options, expected):
    assert sum(p.numel() for p in FCZSM(**options).parameters()) == expected


@pytest.mark.parametrize(
    "options, gflop",
    [
        pytest.param({}, 1640, id="zsm"),
        pytest.param({"static_channels": 2}, 1679, id="zsm-s"),
    ],
)
def test_flops_of_the_unhoisted_graph(options, gflop):
    model = create("fczsm", **options)
    assert round(count_flops(model.state_dict(), model.config, 2, 200, 200) / 1e9) == gflop


CASES = [
    pytest.param({}, 2, 1, id="pcd"),
    pytest.param({}, 4, 2, id="four-frames"),
    pytest.param({"alignment": "plain"}, 3, 1, id="plain"),
    pytest.param({"lstm_alignment": "plain", "scale": 3, "in_channels": 3}, 2, 2, id="plain-lstm-x3"),
    pytest.param({"static_channels": 2, "static_in_lstm": True, "scale": 1}, 3, 2, id="static-in-lstm-x1"),
    pytest.param({"static_channels": 2, "scale": 4, "modulated": False, "head_features": 4}, 2, 1, id="static-x4"),
    pytest.param({"alignment": "plain", "lstm_alignment": "pcd", "static_channels": 1, "static_in_lstm": True}, 2, 1),
    pytest.param({"alignment": "plain", "static_channels": 1, "static_features": 4}, 2, 1, id="plain-static"),
    pytest.param({"flow_guided": True}, 4, 1, id="flow"),
    pytest.param({"flow_guided": True, "alignment": "plain"}, 3, 2, id="flow-plain"),
    pytest.param({"feature_skip": True}, 3, 1, id="skip"),
]


@pytest.mark.parametrize("options, frames, batch", CASES)
def test_equals_the_reference(options, frames, batch):
    model = network(**options)
    x, static, flow = inputs(model, batch, frames)
    parameters = dict(model.named_parameters())
    expected = ReferenceFCZSM(parameters, model.config)(x, static, flow.double())
    y = model(x, static, flow)
    r = model.config["scale"]
    assert y.shape == (batch, 2 * frames - 1, 1, r * 16, r * 20)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)  # the flow pyramid is float32: 3e-12
    grad_y = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(parameters.values()), grad_y)
    expected = torch.autograd.grad(expected, list(parameters.values()), grad_y)
    for name, grad, want in zip(parameters, grads, expected, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-6, atol=1e-7 * want.abs().max().item(), msg=name)


@pytest.mark.parametrize("options, frames, batch", CASES)
@pytest.mark.parametrize("bytes_at_once", [0, 100_000], ids=["frame", "some"])
def test_inference_in_chunks_is_identical(options, frames, batch, bytes_at_once, monkeypatch):
    model = network(**options)
    x, static, flow = inputs(model, batch, frames)
    whole = model(x, static, flow).detach()
    monkeypatch.setattr(chunks, "WORKING_SET_BYTES", bytes_at_once)
    row_bytes = set()
    for part in (conv_lstm, fczsm_network):
        monkeypatch.setattr(part, "split_rows", lambda *of: row_bytes.add(of[1]) or chunks.split_rows(*of))
    with torch.no_grad():
        torch.testing.assert_close(model(x, static, flow), whole, rtol=0, atol=1e-13)
    r, head = model.config["scale"], model.config["head_features"] or 8
    # Bytes of a row of gates, and of a row of the head's feature map with most channels.
    assert row_bytes == {8 * 20 * n for n in (4 * 8, r * r * head)}


def test_guided_convolutions_start_with_half_masks():
    """If offsets are 0, sigmoid masks are 1/2, and a deformable convolution halves its weight."""
    model = FCZSM(**SMALL).double()
    x, *_ = inputs(model)

    def half_convolution(x, offset, weight, bias, mask):
        assert offset.abs().max() == 0
        return F.conv2d(x, 0.5 * weight, bias, padding=1)

    expected = ReferenceFCZSM(model.state_dict(), model.config, half_convolution)(x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("static_channels", [0, 2], ids=["dynamic", "static"])
def test_time_reversal(static_channels):
    """Reversed inputs give reversed outputs if the weights for the past and the future are swapped."""
    model = network(static_channels=static_channels)
    x, static, _ = inputs(model, frames=3)
    y = model(x, static)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    swapped = {}
    for key, value in state.items():
        if key.startswith("interpolation.way"):
            key = key.replace("way1", "WAY").replace("way2", "way1").replace("WAY", "way2")
        if key in ("interpolation.mix.weight", "lstm.merge.weight"):
            value = value.roll(8, 1)
        swapped[key] = value
    model.load_state_dict(swapped)
    torch.testing.assert_close(model(x.flip(1), static).flip(1), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("h, w", [(21, 30), (4, 4), (1, 3), (17, 16)])
def test_any_size_by_padding_and_cropping(h, w):
    model = network(static_channels=1, flow_guided=True)
    x, static, flow = inputs(model, h=h, w=w)
    pad = (0, -w % 4, 0, -h % 4)

    def padded(z):
        flat = F.pad(z.reshape(-1, 1, h, w), pad, mode="replicate")
        return flat.reshape(*z.shape[:-2], *flat.shape[-2:])

    y = model(x, static, flow)
    assert y.shape == (1, 3, 1, 2 * h, 2 * w)
    torch.testing.assert_close(y, model(padded(x), padded(static), padded(flow))[..., : 2 * h, : 2 * w])


def test_flow_guidance_samples_along_the_motion():
    model = FCZSM(**SMALL, alignment="plain", flow_guided=True).double().interpolation
    model.way2.load_state_dict(model.way1.state_dict())
    first = torch.zeros(1, 8, 24, 24, dtype=torch.float64)
    first[..., 8:12, 8:12] = torch.rand(8, 4, 4)
    last, middle = first.roll((4, 2), (2, 3)), first.roll((2, 1), (2, 3))
    flow = torch.tensor([4.0, 2.0]).reshape(1, 1, 1, 2, 1, 1) * torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1, 1, 1)
    flow = flow.expand(1, 1, 2, 2, 24, 24)
    from fastds.models.fczsm.guidance import compute_interpolation_offsets

    base1, base2 = compute_interpolation_offsets(flow, 1)
    with torch.no_grad():
        still = model.way1([middle], [middle])
        torch.testing.assert_close(model.way1([first], [last], None, base1), still, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.way2([last], [first], None, base2), still, rtol=0, atol=1e-12)


def test_flow_guidance_halves_the_flow_per_level():
    from fastds.models.fczsm.guidance import build_offset_pyramid

    one, two, three = build_offset_pyramid(torch.full((1, 2, 8, 12), 4.0), 3)
    assert (one == 4).all() and (two == 2).all() and (three == 1).all()
    assert two.shape == (1, 2, 4, 6) and three.shape == (1, 2, 2, 3)


def test_flow_guidance_of_every_step():
    flow = torch.arange(1.0, 5.0).view(1, 2, 2, 1, 1, 1).expand(1, 2, 2, 2, 8, 8)
    assert compute_state_offsets(flow, 0, True, 1) is None
    for step, x_way, state_way in ((1, (1, 4), (2, 3)), (2, (1, 4), (2, 3)), (3, (3, 2), (4, 1)), (4, (3, 2), (4, 1))):
        for turn in (1, -1):
            found = [way[0][:, 0, 0, 0].tolist() for way in compute_state_offsets(flow, step, turn == 1, 1)]
            assert found == [[0.5 * value for value in way[::turn]] for way in (x_way, state_way)]


@pytest.mark.parametrize("residual", ["trilinear", "advection"])
def test_residual_is_added(residual):
    from fastds.models.baselines import advection, trilinear

    model = network(torch.float32, residual=residual)
    x, _, flow = inputs(model, dtype=torch.float32)
    with torch.no_grad():
        base = trilinear(x, 2) if residual == "trilinear" else advection(x, 2, flow)
        y = model(x, flow=flow)
        model.config["residual"] = None
        torch.testing.assert_close(y, base + model(x))


def test_flow_is_computed_when_needed():
    from fastds.models.baselines import optical_flow

    model = network(torch.float32, flow_guided=True)
    x, *_ = inputs(model, frames=3, h=32, w=32, dtype=torch.float32)
    torch.testing.assert_close(model(x), model(x, flow=optical_flow(x)))


class Counted(torch.nn.Module):
    """Calls a module and counts the calls."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, x):
        self.calls += 1
        return self.module(x)


def test_static_features_are_computed_once_per_grid_and_never_stale():
    model = network(static_channels=2)
    branch = model.static_branch
    branch.extractor = counted = Counted(branch.extractor)
    x, static, _ = inputs(model)
    with torch.no_grad():
        first = model(x, static)
        assert torch.equal(model(x, static.clone()), first) and counted.calls == 1
        static[0, 3, 4] += 1.0  # in place: same object, same address
        second = model(x, static)
        assert counted.calls == 2 and not torch.equal(second, first)
        counted.module.conv.weight.data.view(-1)[0] += 1.0  # what a fused optimiser does: no version counter moves
        assert not torch.equal(model(x, static), second) and counted.calls == 3
        other = static[:, :12]
        model(x[..., :12, :], other)
        assert counted.calls == 4
    y = model(x, static)
    assert counted.calls == 5 and y.requires_grad


def test_bfloat16_autocast():
    """The error is at most twice that of the step-by-step reference under the same autocast."""
    model = network(torch.float32, spread=0.02)
    x, *_ = inputs(model, dtype=torch.float32)
    exact = ReferenceFCZSM({k: v.double() for k, v in model.state_dict().items()}, model.config)(x.double())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model(x)
        theirs = ReferenceFCZSM(model.state_dict(), model.config, deform_in_float32)(x)
    assert ours.dtype == torch.bfloat16
    error, peer_error = ((y.double() - exact).square().mean().sqrt() for y in (ours, theirs))
    assert error <= 2 * peer_error + 1e-4


def deform_in_float32(x, offset, weight, bias, mask):
    from tests.references.fczsm import deform_by_grid_sample

    with torch.autocast("cpu", enabled=False):
        return deform_by_grid_sample(x.float(), offset.float(), weight, bias, mask.float())


def test_learns_an_advected_cell_better_than_trilinear():
    from fastds.models.baselines import trilinear

    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    cell = [torch.exp(-((rows - 10 - 4 * k) ** 2 + (columns - 12 - 3 * k) ** 2) / 18) for k in range(3)]
    truth = torch.stack(cell)[None, :, None]
    x = F.avg_pool2d(truth[0, ::2], 2)[None]
    model = FCZSM(**SMALL, alignment="plain")
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(x) - truth).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * (trilinear(x, 2) - truth).square().mean()


def test_layout_is_channels_last_all_the_way():
    """Outputs of modules with more than one channel are channels_last."""
    model = network(torch.float32)
    seen = []

    def check(module, _, out):
        if isinstance(out, torch.Tensor) and out.ndim == 4:
            seen.append(out.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        module.register_forward_hook(check)
    with torch.no_grad():
        model(inputs(model, dtype=torch.float32)[0])
    assert len(seen) > 50 and all(seen)


@pytest.mark.parametrize(
    "shape, static, flow, message",
    [
        ((2, 1, 8, 8), None, None, r"x must have shape \(B, N >= 2, 1, h, w\), got \(2, 1, 8, 8\)"),
        ((1, 1, 1, 8, 8), None, None, "x must have shape"),
        ((1, 2, 3, 8, 8), None, None, "x must have shape"),
        ((1, 2, 1, 8, 8), (2, 8, 8), None, "static was given, but this model has static_channels=0"),
        ((1, 2, 1, 8, 8), None, (1, 1, 2, 8, 8), r"flow must have shape \(1, 1, 2, 2, 8, 8\)"),
    ],
)
def test_invalid_inputs_are_named(shape, static, flow, message):
    model = FCZSM(**SMALL)
    static, flow = (None if s is None else torch.zeros(s) for s in (static, flow))
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), static, flow)


@pytest.mark.parametrize("static, message", [(None, "static is missing"), ((2, 8, 7), "static must have shape")])
def test_invalid_static_is_named(static, message):
    model = FCZSM(**SMALL, static_channels=2)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 2, 1, 8, 8), None if static is None else torch.zeros(static))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_features": 12, "offset_groups": 8}, "num_features must be divisible by offset_groups, got 12 and 8"),
        ({"scale": 5}, "scale must be one of"),
        ({"alignment": "cascade"}, "alignment must be one of"),
        ({"residual": "bicubic"}, "residual must be one of"),
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"extractor_blocks": -1}, "extractor_blocks must be an integer >= 0"),
        ({"residual": "trilinear", "out_channels": 2}, "out_channels must be at most in_channels=1, got 2"),
        ({"scale": 1, "head_features": 4}, "out_channels must equal in_channels for upscale_factor 1"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FCZSM(**{**SMALL, **options})


def test_rows_in_chunks_are_identical(monkeypatch):
    options = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
    model, x = create("fczsm-small", **options).eval(), torch.rand(3, 2, 1, 16, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv_offset_mask" in name or "last" in name:
                parameter.normal_(0, 0.02)
        whole = model(x)
        monkeypatch.setattr(conv_lstm, "get_frames_per_chunk", lambda frame: 2)
        torch.testing.assert_close(model(x), whole, rtol=1e-5, atol=1e-6)
    assert conv_lstm.split_batch(3, x) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]


@pytest.mark.parametrize("levels", [1, 3])
def test_static_maps_have_as_many_levels_as_the_frames(levels):
    maps = StaticBranch(torch.nn.Identity(), 4, levels).eval()(torch.rand(1, 4, 16, 16))
    assert [tuple(z.shape) for z in maps] == [(1, 4, 16 >> k, 16 >> k) for k in range(levels)]


def test_states_of_a_zero_state_lie_in_channels_last():
    """The zero state has strides of 0; the new states must be channels_last to avoid copies at later steps."""
    lstm = conv_lstm.DeformableConvLSTM(4, 2, True, 0, True)
    with torch.no_grad():
        from_x, from_h, bias = lstm.split_gate_parameters()
        zero = torch.zeros(1, 4, 1, 1).expand(2, 4, 6, 8)
        states = lstm.run_cell(zero, zero, torch.randn(2, 16, 6, 8), from_h)
    assert all(z.is_contiguous(memory_format=torch.channels_last) for z in states)
