# SPDX-License-Identifier: Apache-2.0
"""Writing of figures and animations, atomically; the ending of the name gives the format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fastds._options import OptionError
from fastds._outputs import atomic_write
from fastds.data.packages import require
from fastds.plot.panels import MapPanels

FIGURE_FORMATS = (".png", ".svg", ".pdf")
ANIMATION_FORMATS = (".gif", ".mp4")
_FRAME_MS, _LAST_MS = 400, 1600  # duration of a frame, and of the last one before the animation repeats
_DPI = 110


def is_animation(path: str | os.PathLike) -> bool:
    """Return whether the ending of a name is that of an animation, .gif or .mp4."""
    return Path(path).suffix.lower() in ANIMATION_FORMATS


def check_picture(path: str | os.PathLike, argument: str = "picture", animated: bool = True) -> None:
    """Check the ending of the name of a picture before anything is computed.

    Args:
        path: name of the picture.
        argument: name of the argument for the message.
        animated: whether animations are possible.

    Raises:
        OptionError: the ending is not that of a known format.
        ImportError: an animation as MP4 needs the package imageio-ffmpeg, which is not installed.
    """
    formats = FIGURE_FORMATS + (ANIMATION_FORMATS if animated else ())
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise OptionError(argument, f"must end in {', '.join(formats[:-1])} or {formats[-1]}, got {os.fspath(path)!r}")
    if suffix == ".mp4":
        require("imageio-ffmpeg", "animations as MP4 (an animation as .gif needs no further package)")


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = _DPI) -> None:
    """Write a figure atomically as PNG, SVG or PDF, by the ending of the name.

    Args:
        figure: the figure.
        path: file to write; an existing file is replaced.
        dpi: pixels per inch of PNG, and of the cells of maps in SVG and PDF.

    Raises:
        OptionError: another ending.
    """
    check_picture(path, "path", animated=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=dpi)


def save_animation(
    panels: MapPanels,
    frames: Iterable[tuple[str, Sequence[Sequence[np.ndarray | None]]]],
    path: str | os.PathLike,
    dpi: int = _DPI,
) -> None:
    """Write an animation atomically as GIF or MP4, by the ending of the name.

    Args:
        panels: maps of the first frame.
        frames: for each frame the title, and the fields of each row, see MapPanels.set_fields.
        path: file to write; an existing file is replaced.
        dpi: pixels per inch.

    Raises:
        OptionError: another ending.
        ImportError: MP4 needs the package imageio-ffmpeg, which is not installed.
    """
    check_picture(path, "path")
    images = (_render(panels, title, fields, dpi) for title, fields in frames)
    with atomic_write(path) as temporary:
        if Path(path).suffix.lower() == ".gif":
            _write_gif(images, temporary)
        else:
            _write_mp4(images, temporary)


def _render(panels: MapPanels, title: str, fields: Sequence[Sequence[np.ndarray | None]], dpi: int) -> np.ndarray:
    """Return a frame (height, width, 3) as bytes."""
    panels.set_title(title)
    panels.set_fields(fields)
    figure = panels.figure
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # all frames have the layout of the first
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write_gif(frames: Iterable[np.ndarray], path: Path) -> None:
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * (len(images) - 1) + [_LAST_MS]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


def _write_mp4(frames: Iterable[np.ndarray], path: Path) -> None:
    import imageio_ffmpeg

    writer: Any = None
    try:
        for frame in frames:
            even = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if writer is None:
                size, options = even.shape[1::-1], ["-f", "mp4", "-movflags", "+faststart"]
                writer = imageio_ffmpeg.write_frames(
                    os.fspath(path), size, fps=1000 / _FRAME_MS, macro_block_size=2, quality=8, output_params=options
                )
                writer.send(None)
            writer.send(even)
    finally:
        if writer is not None:
            writer.close()
