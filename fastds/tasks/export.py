# SPDX-License-Identifier: Apache-2.0
"""The function fastds.export and the command `fastds export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError
from torch import nn

from fastds._messages import convert_parser_error
from fastds._options import use_option_names
from fastds._parsers import build_command_parser, get_spellings
from fastds.inference.files import check_target, load_model
from fastds.models.export import Exported
from fastds.models.export import export as export_loaded


def export(
    model: nn.Module | str | os.PathLike,
    path: str | os.PathLike,
    *,
    frames: int | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Exported:
    """Export a network to a file that runs without fastds, and compare the file with the network at two sizes.

    Optical flow, noise and query points are inputs of the exported network. `Exported.inputs` lists the names and
    shapes of the inputs; the metadata of the file describe them.

    Args:
        model: loaded model, shipped name or weights file. A loaded model is not changed.
        path: file to write; an existing file is replaced. OUT.onnx: ONNX with standard operators in float32, for
            onnxruntime. OUT.pt2: package of AOTInductor, compiled for this kind of machine, for
            torch._inductor.aoti_load_package. The model card is in the metadata as JSON.
        frames: number of input frames, fixed in the file. Default: the number in the model card, else 2 (FC-ZSM), 5
            (nowcasts) or 8 (humidity).
        steps: number of forecast frames of a nowcast, fixed in the file (default: 12).
        progress: print each stage to standard error (default: False).

    Returns:
        Exported, with the largest difference between file and network.

    Raises:
        ValueError: a network that cannot be exported, an option that the network does not have, another file extension,
            or a file that differs from the network by more than 1e-4 of the output range (the file is then removed).
        ImportError: a required package is missing.
        OSError: there are no such weights, or the file cannot be written.
    """
    check_target("" if isinstance(model, nn.Module) else model, path)
    return export_loaded(load_model(model), path, frames, steps, _print_message if progress else _ignore_message)


def _ignore_message(doing: str) -> None:
    pass


def _print_message(doing: str) -> None:
    print(f"export: {doing}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run `fastds export` and print a summary.

    Raises:
        ValueError: the command line is invalid, or `export` raises this error.
        ImportError: see `export`.
        OSError: see `export`.
    """
    parser = build_command_parser("export")
    with use_option_names(get_spellings(parser)):
        try:
            options = parser.parse_args(list(arguments))
        except ArgumentError as error:
            raise ValueError(f"{convert_parser_error(error)} (see fastds export --help)") from None
        summary = export(options.model, options.output, frames=options.frames, steps=options.steps, progress=True)
        print(summary.summary())
