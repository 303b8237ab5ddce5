# SPDX-License-Identifier: Apache-2.0
"""The verb export, and the command `fastds export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError
from torch import nn

from fastds._parsers import parser_of
from fastds.models.export import Exported
from fastds.models.export import export as export_loaded
from fastds.tasks.common.command import parser_sentence
from fastds.tasks.common.inference import check_target, loaded


def export(
    model: nn.Module | str | os.PathLike,
    path: str | os.PathLike,
    *,
    frames: int | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Exported:
    """Write a network as a file that runs without fastds, and compare it with the network at two sizes.

    Args:
        model: as fastds.load gives it, a shipped name or a weights file; it stays as it is.
        path: OUT.onnx, ONNX of standard operators in float32 for onnxruntime, or OUT.pt2, compiled by AOTInductor for
            this kind of machine, for torch._inductor.aoti_load_package. The card is in the metadata, as JSON. A file
            that exists is replaced.
        frames: fields in a sequence that goes in; default: as the card says, else 2 (FC-ZSM), 5 (nowcasts), 8
            (humidity). steps: fields of a nowcast, default 12. Both are unrolled and fixed in the file; batch, height,
            width and points stay open.
        progress: say on standard error what is done.

    Flow, noise and points are inputs: Exported.inputs has names and shapes, the file's text their meaning.

    Returns: Exported, with the largest difference found.

    Raises: ValueError for a network that cannot be exported, an option it does not take, a path that ends otherwise,
        or a file that differs by more than 1e-4 of the output's range, which is not left there; ImportError where a
        package is missing; what fastds.load raises.
    """
    check_target("" if isinstance(model, nn.Module) else model, path)
    return export_loaded(loaded(model), path, frames, steps, _say if progress else _nothing)


def _nothing(doing: str) -> None:
    pass


def _say(doing: str) -> None:
    print(f"export: {doing}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Export and print what was written. Raises: as export; ValueError for a command line that does not parse."""
    try:
        options = parser_of("export").parse_args(list(arguments))
    except ArgumentError as error:
        said = parser_sentence(error, "fastds export", "-")
        raise ValueError(said.replace("--model", "MODEL").replace("--output", "OUT")) from None
    print(export(options.model, options.output, frames=options.frames, steps=options.steps, progress=True).summary())
