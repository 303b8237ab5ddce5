# SPDX-License-Identifier: Apache-2.0
"""Tests of INRDownscaler and its baselines."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastds.models
from fastds.models import create
from fastds.models.inr import ENCODERS, INRDownscaler
from fastds.models.inr.encoders import DPFA, pad_across_poles, reflect_to_multiple
from fastds.ops.impl.inr_query.points import from_index

f64 = torch.float64
TAU = torch.tensor(0.1).double()  # as a float32 parameter starts
SMALL = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
TINY_DECODER = {"width": 16, "heads": 2, "key_width": 4}


def tiny(**options):
    """Return a small model whose zero-initialised parameters are replaced by random ones."""
    options = SMALL | {"in_channels": 2, "decoder_options": TINY_DECODER} | options
    if options.get("dpfa") == "none":
        options.pop("dpfa_count")
    model = INRDownscaler(**options).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.02)  # DPFA offsets stay below the pixel that its border allows
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "name,options,expected",
    [
        ("inr", {}, 1_619_576),
        ("inr-parity256", {}, 1_850_624),
        ("liif", {}, 1_220_992 + 347_140),
        ("lte", {}, 1_220_992 + 494_084),
        ("metasr", {}, 1_220_992 + 593_152),
        ("ciaosr", {}, 1_220_992 + 1_334_404),
        ("edsr-x2", {}, 1_371_012),
    ],
)
def test_parameter_counts(name, options, expected):
    assert count(create(name, **options)) == expected


def test_parameter_counts_of_the_parts():
    model = create("inr")
    assert count(model.encoder) == 1_220_992 and count(model.embedding) == 5_888
    assert count(model.modules_after) == 259_948 and count(model.decoder) == 132_748
    assert list(model.modules_after) == ["3", "7", "11", "15"]
    assert count(ENCODERS["rdn"](4, "replicate")) == 21_974_528
    assert count(ENCODERS["swinir"](4, "replicate")) == 904_200
    assert count(create("inr-small")) < 500_000


@pytest.mark.parametrize("slope", [False, True], ids=["", "slope"])
@pytest.mark.parametrize("scale", [0.6, 1, 2, 2.5, (2, 4.4)])
@pytest.mark.filterwarnings("ignore:size .* is coarser")
def test_untrained_inr_is_bilinear(scale, slope):
    options = {"width": 64, "heads": 4, "key_width": 8, "slope": slope}
    model = create("inr-small", in_channels=2, decoder_options=options).double().eval()
    x = 250 + 10 * torch.randn(2, 2, 11, 14, dtype=f64)
    y = model(x, scale=scale)
    expected = F.interpolate(x, y.shape[2:], mode="bilinear", align_corners=False)
    assert (y - expected).abs().max() < 1e-12 * 250


def test_phases_of_lte_start_in_their_range():
    """The initial phases are uniform in +-0.5**0.5, as in a linear layer with two inputs."""
    phase = create("lte").decoder.phase
    assert phase.abs().max() <= 0.5**0.5 and phase.min() < -0.6 and phase.max() > 0.6 and phase.mean().abs() < 0.1


@pytest.mark.parametrize("decoder", ["attention", "liif", "lte", "metasr", "ciaosr"])
@pytest.mark.parametrize("encoder", ["edsr", "rdn", "swinir"])
def test_every_encoder_with_every_decoder(encoder, decoder):
    small = {
        "edsr": {"channels": 8, "blocks": 2},
        "rdn": {"channels": 4, "blocks": 2, "layers": 2},
        "swinir": {"channels": 12, "depth": 2, "blocks": 2, "heads": 2, "window": 4},
    }[encoder]
    options = {"in_channels": 2, "encoder": encoder, "encoder_options": small, "dpfa_count": 2, "decoder": decoder}
    options["decoder_options"] = TINY_DECODER if decoder == "attention" else {"width": 16}
    model = INRDownscaler(**options)
    x = torch.randn(2, 2, 10, 13)
    y = model(x, size=(17, 31))
    assert y.shape == (2, 2, 17, 31) and torch.isfinite(y).all()
    y.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


@pytest.mark.parametrize("kind", ["deform", "mask", "modconv", "film", "none"])
def test_dpfa_kinds(kind):
    model = tiny(dpfa=kind)
    x = torch.randn(1, 2, 9, 12, dtype=f64)
    y = model(x, scale=2)
    assert torch.isfinite(y).all()
    for p in model.parameters():
        p.requires_grad_()
    model(x, scale=3).sum().backward()
    if kind != "none":
        module = model.modules_after["1"]
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_slopes_are_a_part_of_every_gradient():
    model = tiny(decoder_options=TINY_DECODER | {"slope": True})
    x = torch.randn(1, 2, 9, 12, dtype=f64)
    y = model(x, scale=2)
    y.square().sum().backward()
    assert model.decoder.slopes.weight.grad.abs().max() > 0
    with torch.no_grad():
        model.decoder.slopes.weight.zero_(), model.decoder.slopes.bias.zero_()
        plain = tiny(decoder_options=TINY_DECODER)
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if "slopes" not in k})
        assert not torch.equal(model(x, scale=2), y) and torch.equal(model(x, scale=2), plain(x, scale=2))


def test_dpfa_starts_as_a_tenth_of_a_plain_convolution():
    for mode in ("replicate", "circular_x", "zeros"):
        module = DPFA(6, 64, mode).double()
        f, e = torch.randn(2, 6, 7, 8, dtype=f64), torch.randn(2, 64, dtype=f64)
        assert (module(f, e) - (f + TAU * module.aggregate(f))).abs().max() < 1e-12
    assert (DPFA(6, 64, mode, "mask").double()(f, e)).shape == f.shape


def test_dpfa_modulates_its_kernel_and_keeps_the_norm_of_its_filters():
    module = DPFA(4, 6, "replicate", "modconv").double()
    torch.nn.init.normal_(module.modulator.weight), torch.nn.init.normal_(module.strength.weight)
    f, e = torch.randn(2, 4, 5, 7, dtype=f64), torch.randn(2, 6, dtype=f64)
    kernel, bias = module.aggregate.weight, module.aggregate.bias
    for k, y in enumerate(module(f, e)):
        gain = (module.modulator.weight[:4] @ e[k]).reshape(1, 4, 1, 1)
        steered = torch.stack([w.norm() * v / v.norm() for w, v in zip(kernel, kernel * (1 + gain), strict=True)])
        a = F.conv2d(F.pad(f[k : k + 1], (1, 1, 1, 1), mode="replicate"), steered, bias)[0]
        strength = TAU + module.strength.weight @ e[k]
        assert (y - (f[k] + strength[:, None, None] * a)).abs().max() < 1e-10


def test_dpfa_offsets_are_periodic_at_the_border():
    module = DPFA(4, 64, "circular_x").double()
    with torch.no_grad():
        module.guide.bias[1:18:2] = 1.0
    f, e = torch.randn(1, 4, 6, 8, dtype=f64), torch.zeros(1, 64, dtype=f64)
    expected = f + TAU * module.aggregate(f.roll(-1, 3))
    assert (module(f, e) - expected).abs().max() < 1e-12


def test_inr_true_sizes_and_anisotropy():
    model = tiny()
    x = torch.randn(1, 2, 11, 7, dtype=f64)
    assert model(x, scale=2.67).shape == (1, 2, 29, 19)
    assert model(x, scale=(1.5, 3)).shape == (1, 2, 16, 21)
    assert torch.equal(model(x, size=(29, 19)), model(x, scale=2.67))


def test_inr_coarser_output_warns_and_supersamples():
    model = tiny()
    x = torch.randn(1, 2, 12, 12, dtype=f64)
    with pytest.warns(UserWarning, match="coarser than the input"):
        assert torch.isfinite(model(x, scale=0.5)).all()
    fine = create("inr-small", in_channels=2).double()(x, scale=0.5, supersample=2)
    assert (fine - F.avg_pool2d(x, 2)).abs().max() < 1e-12  # sub-points fall on the pixels


def test_inr_cell_is_clamped_beyond_the_trained_scale():
    model = tiny(max_scale=4.0)
    x = torch.randn(1, 2, 6, 6, dtype=f64)
    where = from_index(torch.rand(20, 2, dtype=f64) * 5, (6, 6), dtype=f64)
    eight, four, two = (model(x, points=where, scale=s) for s in (8, 4, 2))
    assert torch.equal(eight, four) and (two - four).abs().max() > 1e-6


@pytest.mark.parametrize("size", [(1, 5), (6, 1), (1, 1)])
def test_inr_single_rows_and_columns(size):
    model = tiny()
    assert torch.isfinite(model(torch.randn(1, 2, *size, dtype=f64), scale=3)).all()


def test_inr_is_periodic_in_longitude():
    model = tiny(periodic_x=True)
    x = torch.randn(1, 2, 6, 8, dtype=f64)
    y = model(x, scale=2)
    assert (model(x.roll(3, 3), scale=2) - y.roll(6, 3)).abs().max() < 1e-12
    jump = (y[..., 0] - y[..., -1]).abs().mean()
    assert jump < 2 * y.diff(dim=3).abs().mean()  # the seam is a place like any other


def test_inr_at_the_poles():
    x = torch.randn(1, 2, 9, 8, dtype=f64)
    z, halo = pad_across_poles(x, "node", [1])
    assert halo == 8 and torch.equal(z[:, :, halo:-halo], x)
    assert torch.equal(z[:, 0, halo - 1], x[:, 0, 1].roll(4, -1)) and torch.equal(
        z[:, 1, halo - 1], -x[:, 1, 1].roll(4, -1)
    )
    assert torch.equal(z[:, 0, -halo], x[:, 0, -2].roll(4, -1))
    z, halo = pad_across_poles(x, "cell", [])
    assert torch.equal(z[:, 0, halo - 1], x[:, 0, 0].roll(4, -1))
    with pytest.raises(ValueError, match="even number of columns"):
        pad_across_poles(x[..., :7], "cell", [])


@pytest.mark.parametrize("pole", ["clamp", "cross"])
def test_inr_preserves_zonally_constant_fields(pole):
    model = tiny(periodic_x=True, registration="node", pole=pole)
    x = torch.randn(1, 2, 9, 1, dtype=f64).expand(1, 2, 9, 8).contiguous()
    y = model(x, scale=2)
    assert y.shape == (1, 2, 17, 16)
    # Longitudes between pixels see other offsets than those on them: each kind of longitude by itself is constant.
    assert (y[..., 0::2] - y[..., :1]).abs().max() < 1e-10 and (y[..., 1::2] - y[..., 1:2]).abs().max() < 1e-10


def test_inr_node_grids_keep_their_nodes():
    model = create("inr-small", in_channels=1, registration="node", periodic_x=True).double()
    x = torch.linspace(90, -90, 19, dtype=f64)[None, None, :, None].expand(1, 1, 19, 36)
    y = model(x, scale=4)
    assert y.shape == (1, 1, 73, 144)
    assert (y[0, 0, :, 0] - torch.linspace(90, -90, 73, dtype=f64)).abs().max() < 1e-12


def test_inr_large_offsets_in_half_precision():
    """The skip connection must not round geopotential of 1.2e5 to bfloat16, whose step is 512."""
    model = create("inr-small", in_channels=1)
    model.mean.fill_(1.2e5), model.std.fill_(500.0)
    x = 1.2e5 + 500 * torch.randn(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, scale=2)
    expected = F.interpolate(x, (16, 16), mode="bilinear", align_corners=False)
    assert y.dtype == torch.float32 and (y - expected).abs().max() < 0.05


def test_inr_chunks_are_identical():
    model = tiny()
    x = torch.randn(1, 2, 10, 12, dtype=f64)
    grid, factor = model.build_grid((10, 12), (23, 40)), torch.tensor([[2.3, 40 / 12]], dtype=f64)
    encoded = model.encode(x, factor)
    whole = model.decode(encoded, grid, 2 / factor).unflatten(1, (23, 40))
    for rows in ((0, 7), (7, 8), (8, 23)):
        part = model.decode(encoded, grid.window(rows, (0, 40)), 2 / factor).unflatten(1, (-1, 40))
        assert torch.equal(part, whole[:, slice(*rows)])


def test_points_are_grid_values():
    for decoder in ("attention", "metasr"):
        options = {"decoder_options": {"width": 16}} if decoder == "metasr" else {}
        model = tiny(decoder=decoder, **options)
        x = torch.randn(2, 2, 6, 8, dtype=f64)
        grid = model.build_grid((6, 8), (15, 20))
        y = model(x, points=grid.points(dtype=f64), scale=2.5)
        assert (y.unflatten(1, (15, 20)).permute(0, 3, 1, 2) - model(x, scale=2.5)).abs().max() < 1e-10


def test_inr_missing_pixels():
    model = tiny(mask_channel=True)
    x = torch.randn(1, 2, 12, 12, dtype=f64)
    x[:, 0, :3, :3] = math.nan
    y = model(x, scale=2)
    assert y[..., :4, :4].isnan().all() and torch.isfinite(y[..., 7:, 7:]).all()
    filled = torch.where(torch.isnan(x), 1e30, x)
    assert not torch.allclose(
        model(filled, scale=2)[..., 7:, 7:], y[..., 7:, 7:]
    )  # the value does not reach the network
    whole = model(x.nan_to_num(), scale=2)
    assert torch.isfinite(whole).all()
    y.nansum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_inr_conserves_means():
    model = tiny()
    x = torch.randn(1, 2, 6, 7, dtype=f64)
    y = model(x, scale=3, conserve=True)
    assert (F.avg_pool2d(y, 3) - x).abs().max() < 1e-12
    with pytest.raises(ValueError, match="conserve needs whole factors"):
        model(x, scale=2.5, conserve=True)


def test_static_and_predicted_channels():
    model = tiny(in_channels=3, predicted=[2, 0], static_channels=1)
    x, static = torch.randn(2, 3, 6, 7, dtype=f64), torch.randn(1, 1, 6, 7, dtype=f64)
    y = model(x, scale=2, static=static)
    assert y.shape == (2, 2, 12, 14) and (model(x, scale=2, static=static + 1) - y).abs().max() > 1e-9
    model = create("inr-small", in_channels=3, predicted=[2, 0]).double()
    assert (model(x, scale=1) - x[:, [2, 0]]).abs().max() < 1e-12


def test_normalisation_makes_the_network_free_of_units():
    model = tiny()
    x = torch.randn(1, 2, 6, 7, dtype=f64)
    y = model(x, scale=2)
    factor, shift = torch.tensor([5.0, 0.2], dtype=f64), torch.tensor([280.0, -3.0], dtype=f64)
    model.mean.copy_(shift), model.std.copy_(factor)
    moved = model(x * factor[:, None, None] + shift[:, None, None], scale=2)
    assert (moved - (y * factor[:, None, None] + shift[:, None, None])).abs().max() < 1e-10


def test_swinir_windows_wrap_on_whole_windows():
    options = {"channels": 12, "depth": 2, "blocks": 1, "heads": 2, "window": 4}
    encoder = ENCODERS["swinir"](2, "circular_x", **options).double()
    x = torch.randn(1, 2, 8, 16, dtype=f64)
    y = encoder(x, lambda i, f: f)
    assert (encoder(x.roll(4, 3), lambda i, f: f) - y.roll(4, 3)).abs().max() < 1e-10
    assert torch.equal(
        reflect_to_multiple(torch.arange(5.0)[None, None, None], 4)[0, 0, 0], torch.tensor([0, 1, 2, 3, 4, 3, 2, 1.0])
    )


@pytest.mark.parametrize("name", ["inr-small", "liif", "edsr-x2"])
def test_saved_models_come_back(tmp_path, name):
    small = {"encoder_options": {"channels": 8, "blocks": 2}, "in_channels": 2}
    model = create(name, **(small | ({"dpfa_count": 1} if name == "inr-small" else {})))
    model.std.fill_(3.0)
    fastds.models.save(model, tmp_path / "m.safetensors")
    again, x = fastds.models.load(tmp_path / "m.safetensors"), torch.randn(1, 2, 6, 7)
    ask = {} if name == "edsr-x2" else {"scale": 2}
    with torch.no_grad():
        assert torch.equal(again(x, **ask), model(x, **ask))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m, x: m(x), "exactly one of size, scale and points"),
        (lambda m, x: m(x, (4, 4), scale=2), "exactly one of size, scale and points"),
        (lambda m, x: m(x, scale=0), "scale must be a positive number"),
        (lambda m, x: m(x, scale=-1.5), "scale must be a positive number"),
        (lambda m, x: m(x, scale=math.nan), "scale must be a positive number"),
        (lambda m, x: m(x, scale=(1, 2, 3)), "scale must be a positive number or a pair"),
        (lambda m, x: m(x[:, :1], scale=2), "expected \\(B, 2, H, W\\)"),
        (lambda m, x: m(x, scale=2, static=x), "static has shape"),
        (lambda m, x: INRDownscaler(encoder="vgg"), "encoder must be one of edsr, rdn, swinir"),
        (lambda m, x: INRDownscaler(dpfa="full"), "dpfa must be one of"),
        (lambda m, x: INRDownscaler(predicted=[7]), "predicted must name channels"),
        (lambda m, x: INRDownscaler(dpfa_count=99), "dpfa_count must lie in 1..16"),
        (lambda m, x: create("edsr-x2", scale=5), "scale must be 2, 3 or 4"),
    ],
)
def test_inr_rejects_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny(), torch.randn(1, 2, 6, 7, dtype=f64))
