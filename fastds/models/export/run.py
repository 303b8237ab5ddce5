# SPDX-License-Identifier: Apache-2.0
"""From a network to a checked file."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.models.export import onnx_file, package
from fastds.models.export.program import OTHERS, TRACED, at_least, trace
from fastds.models.export.signatures import Signature, signature

FORMS = {".onnx": onnx_file, ".pt2": package}
TOLERANCE = 1e-4  # largest difference from our own network, as a part of the range of its output


@dataclass(frozen=True)
class Exported:
    """A written file: what its inputs are, and the largest difference from the network by sizes tried, as a part of the
    output's range."""

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    differences: dict[str, float]

    def summary(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        tried = ", ".join(f"{difference:.1e} at {sizes}" for sizes, difference in self.differences.items())
        size = self.path.stat().st_size / 1e6
        return f"wrote {self.path} ({size:.1f} MB)\ninputs: {shapes}\nlargest difference from the network: {tried}"


def export(
    model: nn.Module, path: str | os.PathLike, frames: int | None, steps: int | None, say: Callable[[str], None]
) -> Exported:
    """See fastds.export, whose model is loaded already; `say` is told what is done next."""
    path = Path(path)
    if path.suffix not in FORMS:
        raise ValueError(f"the output must end in {' or '.join(FORMS)}, got {path.name}")
    form = FORMS[path.suffix]
    form.check_installed()
    given = signature(copy.deepcopy(model).cpu().float().eval().requires_grad_(False), frames=frames, steps=steps)
    say("1 of 3: the network as a graph")
    program = trace(given, keep_deform=form is onnx_file)
    notes = {"fastds.card": model.card.to_json(), "fastds.version": __version__}
    with atomic_write(path) as temporary:
        say(f"2 of 3: the graph as {path.suffix}{form.SLOW}")
        form.write(program, given, notes, temporary)
        say("3 of 3: compared with the network")
        differences = _compared(given, form.opened(temporary))
    return Exported(path, {name: i.shape for name, i in given.inputs.items()}, differences)


def _compared(given: Signature, theirs: Callable[..., Tensor]) -> dict[str, float]:
    """The differences of a written file from the network; ValueError for one above TOLERANCE."""
    found = {}
    for seed, sizes in enumerate((TRACED, *OTHERS), 2):
        sizes = at_least(sizes, given.least)
        inputs = given.draw(sizes, seed)
        with torch.no_grad():
            ours = given.module(*inputs)
        y = theirs(*inputs)
        words = f"{sizes['batch']} of {sizes['height']} x {sizes['width']}"
        difference = _difference(ours, y, given.channel)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported network differs from ours by {difference:.1e} of its range at {words}, allowed are "
                f"{TOLERANCE:g}; nothing was written"
            )
        found[words] = difference
    return found


def _difference(ours: Tensor, theirs: Tensor, channel: int) -> float:
    """The largest difference as a part of the range of ours, of the variable where that is largest; infinite for
    another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    error, ours = ((t.movedim(channel, 0).flatten(1)) for t in (ours - theirs, ours))
    return (error.abs().amax(1) / (ours.amax(1) - ours.amin(1)).clamp(min=1e-30)).max().item()
