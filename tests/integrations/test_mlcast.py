# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastds
import fastds.models
from fastds.data import synthetic_event
from fastds.models.mlcast import MLCastConvGRU
from fastds.models.mlcast.network import build_card


def cell(weights, x, h):
    """Compute one step of the recurrent cell, with a separate convolution for each source."""
    (gates, gates_bias), (out, out_bias) = weights
    n = x.shape[1]

    def convolved(weight, bias, state):
        return F.conv2d(x, weight[:, :n], bias, padding=1) + F.conv2d(state, weight[:, n:], padding=1)

    update, reset = convolved(gates, gates_bias, h).sigmoid().split(h.shape[1], 1)
    new = convolved(out, out_bias, reset * h).tanh()
    return h + update * (new - h)


def oracle(model, x, steps, noise=None):
    """Compute the network in plain PyTorch.

    Args:
        model: network.
        x: input frames.
        steps: number of forecast steps.
        noise: (members, B, steps, C, H, W), or None.
    """
    state = model.state_dict()

    def weights(side, i):
        parts = [f"{side}.blocks.{i}.convgru.cell.{name}" for name in ("combined_gates", "out_gate")]
        return [(state[f"{part}.weight"], state[f"{part}.bias"]) for part in parts]

    blocks, last = model.num_blocks, []
    maps = list(x.unbind(1))
    for i in range(blocks):
        h, given = torch.zeros_like(maps[0]), []
        for now in maps:
            h = cell(weights("encoder", i), now, h)
            given.append(h)
        maps = [F.pixel_unshuffle(h, 2) for h in given]
        last.append(maps[-1])
    members = []
    for one in [torch.zeros_like(last[-1]).expand(steps, *last[-1].shape).transpose(0, 1)] if noise is None else noise:
        maps = list(one.unbind(1))
        for i in range(blocks):
            h, given = last[-1 - i], []
            for now in maps:
                h = cell(weights("decoder", i), now, h)
                given.append(h)
            maps = [F.pixel_shuffle(h, 2) for h in given]
        members.append(torch.stack(maps, 1))
    return torch.cat(members, 2)


def small(channels=1, blocks=3, **options):
    return fastds.models.create("mlcast-convgru", input_channels=channels, num_blocks=blocks, **options)


@pytest.mark.parametrize(("channels", "batch", "size"), [(1, 2, (16, 24)), (2, 1, (8, 8)), (1, 1, (72, 64))])
def test_convgru_equals_its_formula(channels, batch, size):
    model, x = small(channels).double(), torch.randn(batch, 4, channels, *size, dtype=torch.float64)
    expected = oracle(model, x, 3)
    torch.testing.assert_close(model(x, 3), expected)
    torch.testing.assert_close(model.float()(x.float(), 3).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members", [1, 3])
def test_noise_is_drawn_member_by_member(members):
    model, x = small(noisy_decoder=True), torch.randn(2, 3, 1, 16, 16)
    torch.manual_seed(5)
    got = model(x, 2, members)
    torch.manual_seed(5)
    noise = [torch.randn(2, 2, 64, 2, 2) for _ in range(members)]
    assert got.shape == (2, 2, members, 16, 16)
    torch.testing.assert_close(got, oracle(model, x, 2, noise), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_formula():
    model, x = small().double(), torch.randn(1, 2, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    parameters = [x, *model.parameters()]
    along = torch.randn(1, 2, 1, 16, 16, dtype=torch.float64)
    got = torch.autograd.grad(model(x, 2), parameters, along, allow_unused=True)
    plain = dict(model.named_parameters())
    model.state_dict = lambda: plain
    expected = torch.autograd.grad(oracle(model, x, 2), parameters, along, allow_unused=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_sizes_are_padded_as_mlcast_pads():
    model, x = small(), torch.randn(1, 3, 1, 13, 18)
    padded = F.pad(x, (0, 6, 0, 3))
    torch.testing.assert_close(model(x, 2), oracle(model, padded, 2)[..., :13, :18], rtol=1e-4, atol=1e-5)


def test_parameters_of_the_default_network():
    model = fastds.models.create("mlcast-convgru")
    assert model.num_blocks == 5
    # A cell of C channels has 54 C^2 weights and 3 C biases.
    channels = [4**i for i in range(5)] + [4 ** (i + 1) for i in range(5)]
    assert sum(p.numel() for p in model.parameters()) == sum(54 * c * c + 3 * c for c in channels)


def test_weights_of_mlcast_load_unchanged(tmp_path):
    model = small(2, 2)
    state = {f"network.{name}": value for name, value in model.state_dict().items()}  # as mlcast train saves it
    torch.save({"state_dict": state}, tmp_path / "mlcast.ckpt")
    found = torch.load(tmp_path / "mlcast.ckpt", weights_only=True)["state_dict"]
    loaded = MLCastConvGRU.from_mlcast(found)
    x = torch.randn(1, 2, 2, 8, 8)
    assert torch.equal(loaded(x, 2), model(x, 2)) and loaded.card.task == "nowcast"
    fastds.models.save(loaded, tmp_path / "weights.safetensors")
    assert torch.equal(fastds.models.load(tmp_path / "weights.safetensors")(x, 2), model(x, 2))

    state.popitem()
    with pytest.raises(ValueError, match="state does not fit a ConvGruModel of 2 blocks"):
        MLCastConvGRU.from_mlcast(state)
    with pytest.raises(ValueError, match="it lacks encoder.blocks.0.convgru.cell.out_gate.weight"):
        MLCastConvGRU.from_mlcast({"weight": torch.zeros(3)})
    wide = {name: F.pad(value, (1, 1, 1, 1)) if value.dim() == 4 else value for name, value in found.items()}
    with pytest.raises(ValueError, match=r"convolutions of \(5, 5\), expected \(3, 3\)"):
        MLCastConvGRU.from_mlcast(wide)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_compiles_to_one_graph_and_exports(dtype):
    model, x = small(blocks=2), torch.randn(1, 3, 1, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        torch.testing.assert_close(compiled(x, 2), model(x, 2))
        torch.testing.assert_close(torch.export.export(model, (x, 2)).module()(x, 2), model(x, 2))


def test_mlcast_errors():
    model = small()
    for arguments, words in (
        ((torch.zeros(1, 2, 8, 8), 2), r"x must be a Tensor \(B, T, 1, H, W\)"),
        ((torch.zeros(1, 2, 2, 8, 8), 2), r"got \(1, 2, 2, 8, 8\)"),
        ((torch.zeros(1, 0, 1, 8, 8), 2), r"got \(1, 0, 1, 8, 8\)"),
        ((torch.zeros(1, 2, 1, 8, 8), 0), "steps must be an int >= 1, got 0"),
        ((torch.zeros(1, 2, 1, 8, 8), 2, 0), "ensemble_size must be an int >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            model(*arguments)
    for options in ({"channels": 0}, {"blocks": 0}, {"blocks": 2.0}):
        with pytest.raises(ValueError, match="must be an int >= 1"):
            small(**options)


def test_forecast_pads_with_dry_and_keeps_missing_dry():
    model, frames = small(blocks=2), torch.rand(1, 3, 1, 10, 9)
    frames[0, :, 0, :2] = float("nan")
    known = F.pad(frames.nan_to_num(0.0), (0, 3, 0, 2))
    expected = (model(2 * known - 1, 2)[..., :10, :9] + 1) / 2
    torch.testing.assert_close(model.forecast(frames, 2), expected.clamp(0, 1))


def test_nowcasts_a_dataset():
    xr = pytest.importorskip("xarray")
    z = np.random.default_rng(0).uniform(0, 45, (8, 20, 28)).astype("float32")
    attrs = {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
    times = np.datetime64("2024-01-01", "ns") + np.arange(8) * np.timedelta64(5, "m")
    axes = {n: (n, 1000.0 * np.arange(k), {"standard_name": f"projection_{n}_coordinate", "units": "m"})
            for n, k in (("y", 20), ("x", 28))}  # fmt: skip
    data = xr.Dataset({"z": (("time", "y", "x"), z, attrs)}, {"time": times, **axes})
    model = MLCastConvGRU.from_mlcast(small(blocks=2).state_dict())
    out = fastds.nowcast(model, data, steps=3, quantity="reflectivity")
    known = torch.from_numpy(z[-6:])[None, :, None] / 30 - 1
    expected = (model(known, 3)[0, :, 0].detach().numpy() + 1) * 30
    wet = expected >= 2
    np.testing.assert_allclose(out["reflectivity"].values[wet], expected[wet], rtol=1e-4, atol=1e-3)
    assert (out["reflectivity"].values[~wet] == out["reflectivity"].attrs["no_echo_value"]).all()


def test_results_equal_mlcast():
    peer = pytest.importorskip("mlcast.models.convgru", reason="mlcast is not installed (optional peer)")
    peer = peer.ConvGruModel(1, 4)
    ours = small(blocks=4)
    ours.load_state_dict(peer.state_dict())
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 1, 50, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 12), peer(x, 12), rtol=1e-5, atol=1e-5)
        torch.manual_seed(1)
        expected = peer(x, 3, ensemble_size=2)
        torch.manual_seed(1)
        torch.testing.assert_close(ours(x, 3, ensemble_size=2), expected, rtol=1e-5, atol=1e-5)


def test_members_are_those_of_mlcast():
    torch.manual_seed(3)
    model = MLCastConvGRU(num_blocks=1).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.card = build_card("tiny")
    event = synthetic_event(2, frames=6, shape=(32, 36))
    six, five, other = (
        fastds.nowcast(model, event, steps=2, **options)
        for options in ({"members": 6}, {"members": 5}, {"members": 5, "seed": 1})
    )
    rain = six.rainfall_rate.values
    assert rain.shape == (6, 2, 32, 36) and six.attrs["fastds_errors"] == "noise of the network"
    assert np.array_equal(rain[:5], five.rainfall_rate) and not np.array_equal(five.rainfall_rate, other.rainfall_rate)
    assert len({member.tobytes() for member in rain}) == 6
    assert rain[rain > 0].min() >= 0.0999 and (rain == 0).any()
    share = fastds.nowcast(model, event, steps=2, members=6, probability=[0.5])
    (share,) = (v for v in share.data_vars.values() if v.ndim == 4)
    np.testing.assert_allclose(share[0], (rain >= 0.5).mean(0), atol=1e-6)
    before = torch.get_rng_state()
    dry = event.assign(reflectivity=event.reflectivity.where(event.reflectivity.isnull(), -32.0))
    assert not fastds.nowcast(model, dry, steps=2, members=2).rainfall_rate.any()
    assert torch.equal(torch.get_rng_state(), before)

    known = torch.rand(1, 6, 1, 16, 20)
    torch.manual_seed(4)
    members = model.forecast(known, 2, members=3)
    torch.manual_seed(4)
    expected = ((model(2 * known - 1, 2, 3) + 1) / 2).clamp(0, 1)
    assert torch.equal(members, expected) and model.forecast(known, 2, members=1).shape == (1, 2, 1, 16, 20)
