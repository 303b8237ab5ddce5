# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of the network inr, separately and together, on 90 x 180 pixels at factor 4.

The network is the preset inr without DPFA, because torch has no deformable convolution. "eager" is the same network
with the backend "reference": PyTorch, with the first layer of the decoder as a convolution and in the same bands of
rows.
"""

import contextlib
import functools

import pytest
import torch

import fastds
from fastds import models
from fastds.models.inr import Encoded

SOURCE, SCALE = (90, 180), 4
FLOPS = {
    "encoder": 2 * 1_220_992 * SOURCE[0] * SOURCE[1],
    "decoder": 2 * (64 * 9 * 128 + 64 * 128) * SOURCE[0] * SOURCE[1]
    + 2 * (3 * 128 * 128 + 128 * 4) * SCALE**2 * SOURCE[0] * SOURCE[1],
}
FLOPS["together"] = FLOPS["encoder"] + FLOPS["decoder"]
PEERS = {"fastds": contextlib.nullcontext, "eager": lambda: fastds.use_backend("reference")}


def make_network(dtype):
    """Return the network with random weights, and its input."""
    torch.manual_seed(5)
    model = models.create("inr", dpfa="none").eval()
    torch.nn.init.normal_(model.decoder.trunk[-1].weight, std=0.1)
    x = torch.randn(1, 4, *SOURCE, generator=torch.Generator().manual_seed(6))
    return model.to(dtype), x.to(dtype)


def build(peer, part, dtype):
    """Build the callable to time.

    Args:
        peer: key of PEERS.
        part: "encoder", "decoder" (from the features of the encoder) or "together".
        dtype: dtype of parameters and input.
    """
    model, x = make_network(dtype)
    factor = torch.full((1, 2), float(SCALE), dtype=dtype)
    where = model.build_grid(SOURCE, [SCALE * n for n in SOURCE])

    def encoder():
        return model._encode_features(x, factor)

    def decoder(features):
        encoded = Encoded(features, x, None)
        return model.decode(encoded, where, 2 / factor)

    with torch.no_grad():
        features = encoder()
    parts = {"encoder": encoder, "decoder": lambda: decoder(features), "together": lambda: decoder(encoder())}

    def run():
        with torch.no_grad(), PEERS[peer]():
            return parts[part]()

    return run


@functools.cache
def compute_expected(part):
    """Compute the float64 result of a part."""
    return build("eager", part, torch.float64)()


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("part", FLOPS)
def test_inr_model(measure, part, peer):
    measure(
        build, (peer, part, torch.float32), op="inr", case="90x180 x4", mode=part, peer=peer, dtype="float32",
        flops=FLOPS[part], bytes=4 * 4 * SOURCE[0] * SOURCE[1] * (SCALE**2 if part != "encoder" else 64 / 4),
        expected=compute_expected(part), tolerance=1e-4,
    )  # fmt: skip
