# SPDX-License-Identifier: Apache-2.0
"""The humidity WGAN-GP compared with its reference implementation in eager torch, contiguous and in channels_last.

The reference, tests.references.wgan_gp, computes two convolutions per mixed layer, without fusion. The sample is
one day of eight fields, 8 x 8 to 64 x 64 pixels. A training step computes the loss of the critic with its penalty and
the loss of the generator, both with all gradients; the parameters of the critic are frozen for the second, as in a
training. All weights change slightly before every step, as an optimizer would change them, so that packed weights
cannot be reused. FLOPs are those of the reference.
"""

import functools
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastds.models import HumidityCritic, HumidityGenerator
from fastds.models.wgan_gp import CriticLoss
from tests.references import wgan_gp as reference

ROWS = [
    (mode, peer, dtype)
    for mode in ("forward", "training step")
    for peer, dtype in (
        ("fastds", torch.float32), ("fastds", torch.bfloat16), ("eager", torch.float32),
        ("eager channels_last", torch.float32),
    )
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class ReferenceNetwork(torch.nn.Module):
    """The reference implementation with the parameters of a network."""

    def __init__(self, network, function, layout):
        super().__init__()
        self.network, self.function, self.layout = network.to(memory_format=layout), function, layout
        self.config = network.config

    def forward(self, x, *noise):
        state = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        x = x.flatten(0, 1).contiguous(memory_format=self.layout).unflatten(0, x.shape[:2])
        return self.function(state, self.config, x, *noise, training=self.training)


def make_networks(peer, dtype):
    """Return generator and critic with random weights, and coarse fields, fine fields and noise of one day."""
    torch.manual_seed(3)
    pair = HumidityGenerator().to(dtype), HumidityCritic().to(dtype)
    wide = torch.float64  # so that the values are the same in every dtype
    coarse, fine = torch.rand(1, 8, 1, 8, 8, dtype=wide), torch.rand(1, 8, 1, 64, 64, dtype=wide)
    noise = torch.randn(pair[0].noise_shape(coarse), dtype=wide).to(dtype)
    coarse, fine = coarse.to(dtype), fine.to(dtype)
    if peer == "fastds":
        return *pair, coarse, fine, noise
    layout = torch.channels_last if peer.endswith("channels_last") else torch.contiguous_format
    functions = (reference.generator, reference.critic)
    return *(ReferenceNetwork(n, f, layout) for n, f in zip(pair, functions, strict=True)), coarse, fine, noise


def build(peer, mode, dtype):
    """Build the callable to time.

    Args:
        peer: peer of the row.
        mode: "forward" for the fine fields, "training step" for losses and gradient norms of both networks.
        dtype: bfloat16 for autocast, or the dtype of all tensors.
    """
    single = torch.float32 if dtype == torch.bfloat16 else dtype
    g, d, coarse, fine, noise = make_networks(peer, single)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    if mode == "forward":
        g.eval()

        def forward():
            with torch.no_grad(), cast:
                return g(coarse, noise).float() if dtype != torch.float64 else g(coarse, noise)

        return forward
    loss, epsilon = CriticLoss(d), torch.full((1,), 0.3, dtype=single)
    both = [list(n.parameters()) for n in (d, g)]
    factors = itertools.cycle((1 + 2**-20, 1 / (1 + 2**-20)))

    def step():
        with torch.no_grad():
            torch._foreach_mul_(both[0] + both[1], next(factors))
        with torch.no_grad(), cast:
            fake = g(coarse, noise)
        with cast:
            critic = loss(fine, fake.to(single), None, epsilon)[0]
        first = torch.autograd.grad(critic, both[0])
        with cast:
            member = g(coarse, noise)
            adversarial = -d.requires_grad_(False)(member).mean()
        d.requires_grad_(True)
        content = (member - fine).abs().mean()
        second = torch.autograd.grad(content + 1e-3 * adversarial, both[1])
        norms = [torch.stack([x.norm() for x in grads]).norm() for grads in (first, second)]
        return torch.stack([critic.detach(), content.detach(), *norms])

    return step


class FlopCounter(TorchDispatchMode):
    """Dispatch mode that counts FLOPs. The module hooks of torch's FlopCounterMode do not support autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


@functools.lru_cache
def count_flops(mode):
    """Count the FLOPs of the reference."""
    run = build("eager", mode, torch.float32)
    with FlopCounter() as counter:
        run()
    return counter.total


@functools.lru_cache(maxsize=1)
def compute_expected(mode):
    return build("eager", mode, torch.float64)()


@pytest.mark.parametrize("mode,peer,dtype", ROWS, ids=lambda v: str(v).removeprefix("torch.").replace(" ", "_"))
def test_wgan_gp(measure, mode, peer, dtype):
    measure(
        build, (peer, mode, dtype), op="wgan_gp", case="(1,8,1,8,8) x8", mode=mode, peer=peer,
        dtype=str(dtype).removeprefix("torch."), flops=count_flops(mode), bytes=0, expected=compute_expected(mode),
        tolerance=TOLERANCE[dtype],
    )  # fmt: skip
