# SPDX-License-Identifier: Apache-2.0
"""Tests that converted LIIF, LTE and MetaSR weights give the results of the published formulas."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastds.models import create
from fastds.models.inr.convert import from_published, to_published
from tests.support.inr_cases import grid_coordinates, liif, lte, meta_sr

f64 = torch.float64
C, BLOCKS, WIDTH = 8, 3, 16


def published(decoder):
    """Return a random state with the published keys and shapes."""
    shapes = {"encoder.head.0": (C, 3, 3, 3), f"encoder.body.{BLOCKS}": (C, C, 3, 3)}
    shapes |= {f"encoder.body.{i}.body.{k}": (C, C, 3, 3) for i in range(BLOCKS) for k in (0, 2)}
    widths = [9 * C + 4 if decoder == "liif" else WIDTH, *4 * [WIDTH], 3]
    widths = {"liif": widths, "lte": widths[1:], "metasr": [3, WIDTH, C * 9 * 3]}[decoder]
    shapes |= {f"imnet.layers.{2 * i}": (b, a) for i, (a, b) in enumerate(itertools.pairwise(widths))}
    if decoder == "lte":
        shapes |= {"coef": (WIDTH, C, 3, 3), "freq": (WIDTH, C, 3, 3)}
    state = {}
    for name, shape in shapes.items():
        fan = shape[1] * (9 if len(shape) == 4 else 1)
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape) / fan**0.5, 0.1 * torch.randn(shape[0])
    if decoder == "lte":
        state["phase.weight"] = torch.randn(WIDTH // 2, 2)
    return state | {"encoder.sub_mean.weight": torch.zeros(3, 3, 1, 1)}


def encode(state, x):
    conv = lambda name, x: F.conv2d(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double(), padding=1)  # noqa: E731
    first = f = conv("encoder.head.0", x)
    for i in range(BLOCKS):
        f = f + conv(f"encoder.body.{i}.body.2", conv(f"encoder.body.{i}.body.0", f).relu())
    return first + conv(f"encoder.body.{BLOCKS}", f)


@pytest.mark.parametrize("decoder", ["liif", "lte", "metasr"])
@pytest.mark.parametrize("target", [(14, 18), (19, 16), (20, 28)])
def test_published_weights_give_the_published_numbers(decoder, target):
    state, x = published(decoder), torch.rand(2, 3, 7, 9, dtype=f64)
    model = from_published(state).double()
    z = (x - 0.5) / 0.5
    features, coord = encode(state, z), grid_coordinates(target, 2)
    cell = torch.tensor([2 / n for n in target], dtype=f64).expand(2, 2)
    pair = lambda name: (state[f"{name}.weight"].double(), state[f"{name}.bias"].double())  # noqa: E731
    layers = [pair(f"imnet.layers.{2 * i}") for i in range(sum(k.startswith("imnet") for k in state) // 2)]
    if decoder == "liif":
        expected = liif(features, coord, cell, layers)
    elif decoder == "metasr":
        expected = meta_sr(features, coord, cell, layers, 3)
    else:
        phase = state["phase.weight"].double()
        expected = lte(features, coord, cell, pair("coef"), pair("freq"), phase, layers, z)
    y = model(x, size=target)
    expected = (0.5 * expected + 0.5).reshape(2, *target, 3).permute(0, 3, 1, 2)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert (y - expected)[inner].abs().max() < 1e-9 and (y - expected).abs().max() < 1e-5


@pytest.mark.parametrize("decoder", ["liif", "lte", "metasr"])
def test_conversion_round_trip(decoder):
    state = published(decoder)
    back = to_published(from_published(state))
    assert set(back) == {k for k in state if "sub_mean" not in k}
    assert all(torch.equal(back[k], state[k]) for k in back)


def test_convert_rejects_unsuitable_checkpoints():
    state = published("liif")
    with pytest.raises(ValueError, match="lacks 'imnet.layers.0.weight'"):
        from_published({k: v for k, v in state.items() if not k.startswith("imnet")})
    with pytest.raises(ValueError, match="state lacks encoder.body.3.weight"):
        from_published({k: v for k, v in state.items() if not k.startswith("encoder.body.3")})
    with pytest.raises(ValueError, match="state does not fit metasr with the EDSR encoder: 'imnet.layers.2.weight'"):
        from_published({k: v for k, v in published("metasr").items() if not k.startswith("imnet.layers.2")})
    state["imnet.layers.0.weight"] = torch.zeros(WIDTH, C + 4)  # without feature unfolding
    with pytest.raises(ValueError, match="reads 12 values, expected 9 \\* 8 \\+ 4"):
        from_published(state)
    with pytest.raises(ValueError, match="without DPFA"):
        to_published(create("inr-small"))
