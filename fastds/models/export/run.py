# SPDX-License-Identifier: Apache-2.0
"""Export a network: trace it, write the file, and compare the file with the network."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.models.card import Network
from fastds.models.export import onnx_file, package
from fastds.models.export.program import OTHERS, TRACED, raise_to_least_size, trace
from fastds.models.export.signatures import Signature, build_signature

FORMATS = {".onnx": onnx_file, ".pt2": package}
TOLERANCE = 1e-4  # largest allowed difference from the network, relative to the range of its output


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: path of the file.
        inputs: shape of each input; dynamic sizes are names.
        differences: largest difference from the network for each set of sizes in the check. The difference of a
            variable is relative to the range of this variable in the output.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    differences: dict[str, float]

    def summary(self) -> str:
        """Return a text with the size of the file, its inputs and the differences."""
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        tried = ", ".join(f"{difference:.1e} at {sizes}" for sizes, difference in self.differences.items())
        size = self.path.stat().st_size / 1e6
        return f"wrote {self.path} ({size:.1f} MB)\ninputs: {shapes}\nlargest difference from the network: {tried}"


def export(
    model: nn.Module, path: str | os.PathLike, frames: int | None, steps: int | None, say: Callable[[str], None]
) -> Exported:
    """Export a loaded model, see fastds.export.

    Args:
        model: the network.
        path: output file; the suffix .onnx or .pt2 selects the format.
        frames: number of input frames; None takes the default of the network.
        steps: number of forecast frames; None takes the default.
        say: receives a progress message before each of the three stages.

    Returns:
        The written file with the result of the comparison.

    Raises:
        ValueError: If the suffix is unknown, the network cannot be exported, or the file differs from the network.
        ImportError: If a required package is not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"the output must end in {' or '.join(FORMATS)}, got {path.name}")
    form = FORMATS[path.suffix]
    form.check_installed()
    given = build_signature(copy.deepcopy(model).cpu().float().eval().requires_grad_(False), frames=frames, steps=steps)
    say("1 of 3: the network as a graph")
    program = trace(given, keep_deform=form is onnx_file)
    network: Network = model
    notes = {"fastds.card": network.card.to_json(), "fastds.version": __version__}
    with atomic_write(path) as temporary:
        say(f"2 of 3: the graph as {path.suffix}{form.SLOW}")
        form.write(program, given, notes, temporary)
        say("3 of 3: compared with the network")
        differences = _compare(given, form.load_runner(temporary))
    return Exported(path, {name: i.shape for name, i in given.inputs.items()}, differences)


def _compare(given: Signature, theirs: Callable[..., Tensor]) -> dict[str, float]:
    """Compare the written file with the network at several sizes.

    Args:
        given: signature of the network.
        theirs: the file as a function of tensors.

    Returns:
        The largest relative difference for each set of sizes.

    Raises:
        ValueError: If a difference is above TOLERANCE.
    """
    found = {}
    for seed, sizes in enumerate((TRACED, *OTHERS), 2):
        sizes = raise_to_least_size(sizes, given.least)
        inputs = given.draw(sizes, seed)
        with torch.no_grad():
            ours = given.module(*inputs)
        y = theirs(*inputs)
        label = f"{sizes['batch']} of {sizes['height']} x {sizes['width']}"
        difference = _compute_difference(ours, y, given.channel)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported network differs from ours by {difference:.1e} of its range at {label}, allowed are "
                f"{TOLERANCE:g}; nothing was written"
            )
        found[label] = difference
    return found


def _compute_difference(ours: Tensor, theirs: Tensor, channel: int) -> float:
    """Compute the difference of each variable relative to the range of its output, and return the largest.

    Args:
        ours: output of the network.
        theirs: output of the file.
        channel: dimension of the variables.

    Returns:
        The difference, or infinity if the shapes differ.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    error, ours = ((t.movedim(channel, 0).flatten(1)) for t in (ours - theirs, ours))
    return (error.abs().amax(1) / (ours.amax(1) - ours.amin(1)).clamp(min=1e-30)).max().item()
