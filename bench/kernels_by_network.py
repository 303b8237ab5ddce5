# SPDX-License-Identifier: Apache-2.0
"""Which ops of fastds each network calls, forward and backward, and which convolutions are left to torch.

`python -m bench.kernels_by_network` writes bench/results/kernels_by_network.md; tests/test_kernels_by_network.py
compares that file with what it finds. Calls are those that torch's dispatcher sees, for one small sample in training
mode, the loss being the mean square of the result. What an op calls itself is not counted, whichever backend runs it.
"""

import pathlib
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastds
from fastds.models import HumidityCritic, HumidityGenerator, create
from fastds.models.wgan_gp import CriticLoss
from fastds.ops import PointSpec

OUT = pathlib.Path(__file__).parent / "results" / "kernels_by_network.md"
CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution")
TEXT = """# Kernels by network

Made by `python -m bench.kernels_by_network`, checked by `tests/test_kernels_by_network.py`.

Calls of the ops `torch.ops.fastds` and torch's own convolutions, counted in torch's dispatcher while each network runs
once on a small sample, in training mode, and its loss is differentiated. A fused op is one call, whatever it runs.
`critic of wgan-gp` is the critic by itself, `critic of wgan-gp, loss` the loss that trains it, whose forward holds the
first derivative of the gradient penalty. What is left to torch is strided or transposed, or the 7 x 7 and 1 x 1 kernels
of wgan-gp's blocks and the last 1 x 1 layer of the U-Net.

"""


class Calls(TorchDispatchMode):
    """Counts the calls of ops of fastds by name, and of torch's convolutions, forward or backward, as `torch`."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if space == "fastds":
            self.counts[name] += 1
        elif name.removesuffix("_backward") in CONVOLUTIONS or name.startswith("_convolution_pointwise"):
            self.counts["torch"] += 1
        return func(*args, **(kwargs or {}))


def calls_of(run: Callable[[], Tensor]) -> tuple[Counter, Counter]:
    """Calls while run() gives a loss, and while that is differentiated.

    Convolutions are those of the algorithm "direct": for others it depends on the processor whether a network calls
    torch's or ours.
    """
    with fastds.convolution("direct"), Calls() as forward:
        loss = run()
    with fastds.convolution("direct"), Calls() as backward:
        loss.backward()
    return forward.counts, backward.counts


def square(y: Tensor) -> Tensor:
    """The mean square of a result."""
    return y.square().mean()


def frames(name: str, channels: int = 1, statics: int = 0, size: int = 16) -> Callable[[], Tensor]:
    """An interpolation between two fields."""
    model = create(name).train()
    given = [torch.rand(1, 2, channels, size, size)] + [torch.rand(1, statics, size, size)] * bool(statics)
    return lambda: square(model(*given))


def nowcast(name: str, steps: int = 5) -> Callable[[], Tensor]:
    """Five fields to the next five."""
    model = create(name).train()
    x = torch.rand(1, model.card.input_steps or 5, 1, 32, 32)
    return lambda: square(model.forecast(x, steps))


def points(name: str) -> Callable[[], Tensor]:
    """A field at points, as trainings ask."""
    model = create(name).train()
    x = torch.rand(1, model.in_channels, 12, 12)
    where = PointSpec(torch.randint(0, 11, (1, 20, 2), dtype=torch.int32), torch.rand(1, 20, 2))
    return lambda: square(model.query(x, where, torch.full((1, 2), 2.0)))


def whole(model: nn.Module, *shape: int) -> Callable[[], Tensor]:
    """A network of one tensor."""
    x = torch.rand(shape)
    return lambda: square(model.train()(x))


def critic_loss() -> Callable[[], Tensor]:
    """The critic's loss with its penalty."""
    loss, real, fake = CriticLoss(HumidityCritic()), *torch.rand(2, 2, 8, 1, 32, 32)
    return lambda: loss(real, fake)[0]


NETWORKS: dict[str, Callable[[], Callable[[], Tensor]]] = {
    "fczsm": lambda: frames("fczsm"),
    "fczsm-ds": lambda: frames("fczsm-ds", 3, 2),
    "wgan-gp": lambda: whole(HumidityGenerator(), 1, 8, 1, 4, 4),
    "critic of wgan-gp": lambda: whole(HumidityCritic(), 2, 8, 1, 32, 32),
    "critic of wgan-gp, loss": critic_loss,
    "wgan-gp-small": lambda: whole(create("wgan-gp-small"), 1, 8, 1, 4, 4),
    "db-convlstm": lambda: nowcast("db-convlstm"),
    "db-predrnn": lambda: nowcast("db-predrnn"),
    "db-preciplstm": lambda: nowcast("db-preciplstm"),
    "db-trajgru": lambda: nowcast("db-trajgru"),
    **{name: lambda name=name: points(name) for name in ("inr", "liif", "lte", "metasr", "ciaosr")},
    "srgan": lambda: whole(create("srgan"), 1, 8, 1, 4, 4),
    "unet": lambda: frames("unet", size=32),
    "simvp": lambda: nowcast("simvp"),
}


def found() -> dict[str, tuple[Counter, Counter]]:
    """The calls of every network, forward and backward."""
    torch.manual_seed(0)
    return {name: calls_of(make()) for name, make in NETWORKS.items()}


def table(calls: dict[str, tuple[Counter, Counter]]) -> str:
    """The Markdown file of them."""
    lines = ["| network | forward | backward | torch's convolutions, forward + backward |", "|---|---|---|---|"]
    for name, (forward, backward) in calls.items():
        both = (
            ", ".join(f"{op} {n}" for op, n in sorted(c.items()) if op != "torch") or "-" for c in (forward, backward)
        )
        lines.append(f"| {' | '.join((name, *both))} | {forward['torch']} + {backward['torch']} |")
    return TEXT + "\n".join(lines) + "\n"


if __name__ == "__main__":
    OUT.write_text(table(found()))
