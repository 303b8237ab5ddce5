# SPDX-License-Identifier: Apache-2.0
"""Tests of the generator and critic of the humidity WGAN-GP against a float64 reference."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastds import models
from fastds.models.wgan_gp import CriticLoss, HumidityCritic, HumidityGenerator, gradient_penalty
from fastds.models.wgan_gp.layers import (
    CBAM,
    ConvGRU,
    MixedConv,
    ResidualAttentionBlock,
    SqueezeExcitation,
    cache_kernels,
)
from tests.references import wgan_gp as reference


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


SMALL = dict(scale=4, width=8, post_width=12, pre_blocks=1, post_blocks=2, reduction=4)
SMALL_CRITIC = dict(width=4, down_blocks=2, post_blocks=1, reduction=2)


def shaken(module):
    """Convert to float64 and add noise to parameters and statistics, so that no term is zero."""
    module = module.double()
    for p in module.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    for name, b in module.named_buffers():
        if b.is_floating_point() and not name.endswith(("_u", "_v")):
            b.data.add_(0.2 * torch.rand_like(b))
    return module


# ---- sizes


def test_parameter_counts_of_the_default_reading():
    g, d = on_meta(HumidityGenerator), on_meta(HumidityCritic)
    assert parameters(g) == 11_023_843 and parameters(d) == 6_160_668
    parts = {"stem": 960, "se": 2_184, "pre": 648_129, "gru": 885_120, "post": 2_406_233, "upsampler": 7_080_960}
    assert {name: parameters(getattr(g, name)) for name in parts} == parts and parameters(g.head) == 257
    parts = {"stem": 240, "down": 896_325, "gru": 3_539_712, "post": 1_724_134, "linear": 257}
    assert {name: parameters(getattr(d, name)) for name in parts} == parts


@pytest.mark.parametrize(
    "options,count",
    [
        ({"post_blocks": 2}, 10_161_776),
        ({"pre_blocks": 5}, 11_455_929),
        ({"pre_blocks": 16, "post_blocks": 2}, 12_970_335),
        ({"upsampling": "narrow"}, 4_238_115),
        ({"noise": "learned"}, 11_023_844),
    ],
)
def test_parameter_counts_of_other_generators(options, count):
    assert parameters(on_meta(HumidityGenerator, **options)) == count


@pytest.mark.parametrize(
    "options,count",
    [
        ({"norm": "batch"}, 6_160_668),
        ({"norm": "none"}, 6_156_828),
        ({"use_cbam": False}, 6_132_017),
        ({"recurrent_width": 128}, 2_656_268),
    ],
)
def test_parameter_counts_of_other_critics(options, count):
    assert parameters(on_meta(HumidityCritic, **options)) == count


@pytest.mark.parametrize(
    "block,count",
    [
        (lambda: ResidualAttentionBlock(128, 128, "batch"), 216_043),
        (lambda: ResidualAttentionBlock(128, 256, "batch"), 682_099),
        (lambda: ResidualAttentionBlock(256, 256, "batch"), 862_067),
        (lambda: CBAM(128), 2_283),
        (lambda: CBAM(256), 8_563),
    ],
)
def test_parameter_counts_of_blocks(block, count):
    assert parameters(on_meta(block)) == count


def test_flops_of_a_day():
    g, d = HumidityGenerator(), HumidityCritic()
    for model, run, shape, giga in [
        (g, reference.generator, (1, 8, 1, 8, 8), 54.7),
        (d, reference.critic, (1, 8, 1, 64, 64), 7.45),
    ]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(model.state_dict(), model.config, torch.zeros(shape))
        assert counter.get_total_flops() / 1e9 == pytest.approx(giga, rel=2e-3)


# ---- numbers


@pytest.mark.parametrize("mixing", ["parallel", "sum", "sequential"])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_kernels_as_one_convolution(mixing, stride):
    conv = shaken(MixedConv(3, 6, stride, mixing))
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x), reference.mixed_conv(conv.state_dict(), x, stride, mixing))


def test_two_by_two_kernels_look_down_and_right():
    conv = MixedConv(1, 2).double()
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1
    seen = (conv(x)[0, 0] != conv.bias[0]).nonzero()
    assert seen.min(0).values.tolist() == [1, 1] and seen.max(0).values.tolist() == [2, 2]


GENERATORS = [
    {},
    {"mixing": "sum"},
    {"mixing": "sequential"},
    {"noise": "learned"},
    {"noise": "concat"},
    {"noise_std": 0.5},
    {"upsampling": "narrow"},
    {"use_resblocks": False},
    {"use_cbam": False},
    {"block_activation": False, "stem_activation": True},
    {"in_channels": 3, "out_channels": 2, "scale": 2},
    {"scale": 1},
    {"scale": 16, "upsampling": "narrow"},
    {"pre_blocks": 0, "post_blocks": 0},
]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", GENERATORS, ids=str)
def test_generator_equals_the_reference(options, training):
    g = shaken(HumidityGenerator(**{**SMALL, **options})).train(training)
    c = g.config
    x = torch.randn(2, 3, c["in_channels"], 5, 4, dtype=torch.float64)
    noise = torch.randn(g.noise_shape(x), dtype=torch.float64)
    state = {k: v.clone() for k, v in g.state_dict().items()}
    y = g(x, noise)
    assert tuple(y.shape) == (2, 3, c["out_channels"], 5 * c["scale"], 4 * c["scale"])
    torch.testing.assert_close(y, reference.generator(state, c, x, noise, training), rtol=1e-9, atol=1e-9)
    zero = torch.zeros_like(noise) if c["noise"] == "concat" else None
    if not training:
        torch.testing.assert_close(g(x, "zero"), reference.generator(state, c, x, zero), rtol=1e-9, atol=1e-9)


CRITICS = [
    {},
    {"norm": "none"},
    {"norm": "batch"},
    {"conditional": True, "coarse_channels": 2},
    {"per_step": True},
    {"recurrent_width": 6, "mixing": "sum"},
    {"use_cbam": False, "use_resblocks": False, "block_activation": False},
    {"in_channels": 2, "post_blocks": 0},
]


@pytest.mark.parametrize("options", CRITICS, ids=str)
def test_critic_equals_the_reference(options):
    d = shaken(HumidityCritic(**{**SMALL_CRITIC, **options}))
    x = torch.randn(2, 3, d.config["in_channels"], 12, 8, dtype=torch.float64)
    coarse = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64) if d.config["conditional"] else None
    expected = reference.critic(d.state_dict(), d.config, x, coarse, training=True)
    torch.testing.assert_close(d(x, coarse), expected, rtol=1e-9, atol=1e-9)
    assert tuple(expected.shape) == ((2, 3) if d.config["per_step"] else (2,))


@pytest.mark.parametrize("size", [(9, 7), (1, 1)], ids=str)
def test_critic_takes_any_size(size):
    d = shaken(HumidityCritic(**SMALL_CRITIC))
    x = torch.randn(2, 1, 1, *size, dtype=torch.float64)
    torch.testing.assert_close(d(x), reference.critic(d.state_dict(), d.config, x), rtol=1e-9, atol=1e-9)


def test_hoisted_recurrence_equals_the_loop():
    gru = shaken(ConvGRU(3, 5))
    x = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(gru(x), reference.conv_gru(gru.state_dict(), x))


@pytest.mark.parametrize(("batch", "channels"), [(1, 128), (16, 32)])
def test_recurrence_in_and_outside_critic_loss(batch, channels):
    gru = ConvGRU(channels, channels)
    x = torch.randn(batch, 8, channels, 8, 8, requires_grad=True)

    def run():
        y = gru(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, *gru.parameters()))]

    fused = run()
    with cache_kernels():
        shared = run()
    differences = [float((a - b).norm() / b.norm()) for a, b in zip(fused, shared, strict=True)]
    assert differences[0] < 1e-6 and max(differences) < 4e-6, differences


def test_squeeze_excitation():
    se = shaken(SqueezeExcitation(8, 4))
    x = torch.randn(2, 8, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(se(x), reference.squeeze_excitation(se.state_dict(), x))


def test_float32_on_the_engine_is_near_float64():
    g = shaken(HumidityGenerator(scale=4, width=32, post_width=32, pre_blocks=1, post_blocks=1)).eval()
    x = torch.randn(1, 3, 1, 9, 8, dtype=torch.float64)
    noise = torch.randn(g.noise_shape(x), dtype=torch.float64)
    expected = g(x, noise)
    y = g.float()(x.float(), noise.float())
    assert (y - expected).abs().max() < 1e-4 * expected.std()


# ---- noise


def test_noise_is_seeded_and_members_do_not_depend_on_their_number():
    g = HumidityGenerator(**SMALL).eval()
    x = torch.randn(2, 2, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(g(x, seed=3), g(x, seed=3)) and not torch.equal(g(x, seed=3), g(x, seed=4))
        assert torch.equal(g(x, "zero"), g(x, "zero"))
        assert not torch.equal(g(x), g(x))
    members = g.ensemble(x, 3, seed=7)
    assert tuple(members.shape) == (3, 2, 2, 1, 16, 16) and not members.requires_grad
    assert torch.equal(members[:2], g.ensemble(x, 2, seed=7)) and torch.equal(members[1], g.ensemble(x, 1, seed=8)[0])


def test_residual_gives_the_interpolation_before_training():
    for align in ("center", "grid"):
        g = HumidityGenerator(**SMALL, residual=align)
        x = torch.rand(1, 2, 1, 5, 6)
        torch.testing.assert_close(g(x), models.baselines.interpolate(x, 4, "bicubic", align))


# ---- house


def test_presets_and_checkpoint(tmp_path):
    g = models.create("wgan-gp-small", scale=2)
    assert parameters(g) * 4 < 2_000_000
    models.save(g, tmp_path / "g.safetensors")
    again = models.load(tmp_path / "g.safetensors")
    x = torch.randn(1, 2, 1, 4, 4)
    assert again.config == g.config and torch.equal(again(x, "zero"), g.eval()(x, "zero"))
    assert parameters(on_meta(lambda: models.create("wgan-gp"))) == 11_023_843


@pytest.mark.parametrize("field", ["width", "pre_blocks", "scale", "mixing", "noise", "upsampling", "residual"])
def test_generator_rejects_invalid_arguments(field):
    bad = {"width": 0, "pre_blocks": -1, "scale": 6}.get(field, "other")
    with pytest.raises(ValueError, match=f"{field} must be .*{bad}"):
        HumidityGenerator(**{field: bad})


def test_error_messages():
    g, d = HumidityGenerator(**SMALL), HumidityCritic(**SMALL_CRITIC)
    x = torch.randn(1, 2, 1, 4, 4)
    for message, call in [
        (r"x must have shape \(B, T, 1, h, w\), got \(1, 2, 4, 4\)", lambda: g(x[:, :, 0])),
        ("noise must be 'random', 'zero' or a Tensor, got 'none'", lambda: g(x, "none")),
        (r"noise must have shape \(1, 2, 8, 4, 4\), got \(1,\)", lambda: g(x, torch.zeros(1))),
        ("members must be at least 1, got 0", lambda: g.ensemble(x, 0)),
        (r"x must have shape \(B, T, 1, H, W\)", lambda: d(x[0])),
        ("this critic has conditional=False", lambda: d(x, x)),
        ("coarse is missing", lambda: HumidityCritic(**SMALL_CRITIC, conditional=True)(x)),
        ("coarse must have shape", lambda: HumidityCritic(**SMALL_CRITIC, conditional=True)(x, x[0])),
        ("4 x 4 a multiple of h x w", lambda: HumidityCritic(**SMALL_CRITIC, conditional=True)(x, x[..., :3])),
        ("is the generator's scale that of the coarse fields", lambda: CriticLoss(d)(x, g(x[..., :2, :2]))),
        ("is the generator's scale that of the coarse fields", lambda: gradient_penalty(d, x, g(x))),
        ("norm must be one of", lambda: HumidityCritic(norm="group")),
        ("recurrent_width must be None or a positive integer, got 0", lambda: HumidityCritic(recurrent_width=0)),
        ("post_width must be divisible by 4, got 6", lambda: HumidityGenerator(post_width=6, upsampling="narrow")),
        ("out_channels must be at most in_channels=1, got 2",
         lambda: HumidityGenerator(out_channels=2, residual="grid")),
        ("out_channels must be even", lambda: MixedConv(3, 5)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
