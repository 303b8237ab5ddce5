# SPDX-License-Identifier: Apache-2.0
"""Count of the ops of fastds that each network calls, forward and backward, and of the convolutions of torch.

`python -m bench.kernels_by_network` writes bench/results/kernels_by_network.md, which the test
tests/models/test_kernels_by_network.py checks. A call counts if the dispatcher of torch sees it, for one small
sample in training mode with the mean square of the result as the loss. Calls inside of an op do not count, whichever
backend runs the op.
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

Made by `python -m bench.kernels_by_network`, checked by `tests/models/test_kernels_by_network.py`.

The table counts the calls of the ops in `torch.ops.fastds` and of the convolutions of torch, as the dispatcher of torch
sees them, during one forward and one backward pass of each network on a small sample in training mode. A fused op
counts as one call. `critic of wgan-gp` is the critic alone. `critic of wgan-gp, loss` is the loss that trains the
critic; its forward pass includes the first derivative for the gradient penalty. Convolutions of torch are strided or
transposed, or they are the 7 x 7 and 1 x 1 convolutions in the blocks of wgan-gp and the last 1 x 1 layer of the U-Net.

"""


class Calls(TorchDispatchMode):
    """Dispatch mode that counts ops of fastds by name, and convolutions of torch and their gradients as `torch`."""

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


def count_calls(run: Callable[[], Tensor]) -> tuple[Counter, Counter]:
    """Count the calls of run(), which returns a loss, and of its backward pass.

    The algorithm of convolutions is "direct", because "auto" selects the convolution of torch or of fastds by the
    processor.
    """
    with fastds.use_conv_algorithm("direct"), Calls() as forward:
        loss = run()
    with fastds.use_conv_algorithm("direct"), Calls() as backward:
        loss.backward()
    return forward.counts, backward.counts


def compute_loss(y: Tensor) -> Tensor:
    """Return the mean square of a result."""
    return y.square().mean()


def make_interpolation(name: str, channels: int = 1, statics: int = 0, size: int = 16) -> Callable[[], Tensor]:
    """Return the loss function of a network of two fields.

    Args:
        name: preset.
        channels: variables of each field.
        statics: static fields, 0 for a network without them.
        size: pixels each way.
    """
    model = create(name).train()
    inputs = [torch.rand(1, 2, channels, size, size)] + [torch.rand(1, statics, size, size)] * bool(statics)
    return lambda: compute_loss(model(*inputs))


def make_nowcast(name: str, steps: int = 5) -> Callable[[], Tensor]:
    """Return the loss function of a forecast of some steps by a network."""
    model = create(name).train()
    x = torch.rand(1, model.card.input_steps or 5, 1, 32, 32)
    return lambda: compute_loss(model.forecast(x, steps))


def make_point_query(name: str) -> Callable[[], Tensor]:
    """Return the loss function of a query of random points, as in a training."""
    model = create(name).train()
    x = torch.rand(1, model.in_channels, 12, 12)
    where = PointSpec(torch.randint(0, 11, (1, 20, 2), dtype=torch.int32), torch.rand(1, 20, 2))
    return lambda: compute_loss(model.query(x, where, torch.full((1, 2), 2.0)))


def make_single_input(model: nn.Module, *shape: int) -> Callable[[], Tensor]:
    """Return the loss function of a network of one tensor."""
    x = torch.rand(shape)
    return lambda: compute_loss(model.train()(x))


def make_critic_loss() -> Callable[[], Tensor]:
    """Return a function that computes the critic's loss with the gradient penalty."""
    loss, real, fake = CriticLoss(HumidityCritic()), *torch.rand(2, 2, 8, 1, 32, 32)
    return lambda: loss(real, fake)[0]


NETWORKS: dict[str, Callable[[], Callable[[], Tensor]]] = {
    "fczsm": lambda: make_interpolation("fczsm"),
    "fczsm-ds": lambda: make_interpolation("fczsm-ds", 3, 2),
    "wgan-gp": lambda: make_single_input(HumidityGenerator(), 1, 8, 1, 4, 4),
    "critic of wgan-gp": lambda: make_single_input(HumidityCritic(), 2, 8, 1, 32, 32),
    "critic of wgan-gp, loss": make_critic_loss,
    "wgan-gp-small": lambda: make_single_input(create("wgan-gp-small"), 1, 8, 1, 4, 4),
    "db-convlstm": lambda: make_nowcast("db-convlstm"),
    "db-predrnn": lambda: make_nowcast("db-predrnn"),
    "db-preciplstm": lambda: make_nowcast("db-preciplstm"),
    "db-trajgru": lambda: make_nowcast("db-trajgru"),
    **{name: lambda name=name: make_point_query(name) for name in ("inr", "liif", "lte", "metasr", "ciaosr")},
    "srgan": lambda: make_single_input(create("srgan"), 1, 8, 1, 4, 4),
    "unet": lambda: make_interpolation("unet", size=32),
    "simvp": lambda: make_nowcast("simvp"),
}


def count_all_calls() -> dict[str, tuple[Counter, Counter]]:
    """Return the calls of every network, forward and backward."""
    torch.manual_seed(0)
    return {name: count_calls(make()) for name, make in NETWORKS.items()}


def format_page(calls: dict[str, tuple[Counter, Counter]]) -> str:
    """Return the Markdown file of the calls of count_all_calls()."""
    lines = ["| network | forward | backward | torch's convolutions, forward + backward |", "|---|---|---|---|"]
    for name, (forward, backward) in calls.items():
        both = (
            ", ".join(f"{op} {n}" for op, n in sorted(c.items()) if op != "torch") or "-" for c in (forward, backward)
        )
        lines.append(f"| {' | '.join((name, *both))} | {forward['torch']} + {backward['torch']} |")
    return TEXT + "\n".join(lines) + "\n"


if __name__ == "__main__":
    OUT.write_text(format_page(count_all_calls()))
