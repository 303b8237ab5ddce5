# SPDX-License-Identifier: Apache-2.0
"""Outputs that appear only when they are complete, and the end of the command `fastds` by a signal, which leaves none
that is not."""

import contextlib
import errno
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LONGEST = 200  # bytes of a name in a temporary one; file systems take 255
_SHOW_CURSOR = b"\x1b[?25h"  # which progress bars hide
_incomplete: set[Path] = set()
_owner = 0  # the process that the signals are for; its children leave its files alone
_held: list[int] | None = None


def check_replaceable(path: str | os.PathLike) -> None:
    """Raise ValueError where an output would replace something that is no regular file: a device, a pipe, a socket."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"the output must be a regular file, {path} is a device, a pipe or a socket")


def place_of(path: str | os.PathLike) -> Path:
    """Where an output is written: where a link points to, which stays a link, else the path itself.

    Raises: ValueError for a link that points to itself."""
    path = Path(path)
    if not path.is_symlink():
        return path
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise ValueError(f"the output {path} is a link that points to itself")
    return place


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A block that writes a file or folder under the temporary name it is given, which becomes `path` at its end, or
    what that is a link to; what was there before is kept until then, and after an error.

    Raises: ValueError where `path` is no regular file; OSError in one sentence where the disk is full.
    """
    path = Path(path)
    check_replaceable(path)
    place = place_of(path)
    short = os.fsencode(place.name)[:_LONGEST].decode(errors="ignore")
    temporary = place.with_name(f".{short}.{os.getpid()}-{secrets.token_hex(4)}.part")
    _incomplete.add(temporary)
    try:
        yield temporary
        put_in_place(temporary, place)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(f"{path} cannot be written: {os.strerror(error.errno)}") from error
    finally:
        _remove(temporary)
        _incomplete.discard(temporary)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its name; what had it is gone then, and so is what an archive's manifest tells."""
    if temporary.is_dir():
        path.with_name(f"{path.name}.manifest").unlink(missing_ok=True)
    if not path.is_dir() and not (path.exists() and temporary.is_dir()):
        os.replace(temporary, path)
        return
    old = temporary.with_suffix(".old")
    with _uninterrupted():
        os.replace(path, old)
        os.replace(temporary, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def is_command() -> bool:
    """Whether this process is the command fastds, and no program of someone else that imports the package."""
    words = getattr(sys, "orig_argv", [])
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module.split(".")[0] == "fastds" or os.path.basename(sys.argv[0]) in ("fastds", "fastds.exe")


def end_at_once() -> None:
    """Let SIGINT and SIGTERM end the process with one line and status 130 or 143 wherever it is, imports included."""
    global _owner
    _owner = os.getpid()
    for number in _SIGNALS:
        signal.signal(number, _end)


class Interrupted(KeyboardInterrupt):
    """Work that a signal ended after it had saved its state. Attributes: status, of the process; args: a sentence that
    says how to go on."""

    def __init__(self, number: int, sentence: str):
        super().__init__(sentence)
        self.status = 128 + number


def take_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, object]:
    """Let SIGINT and SIGTERM call a handler, for work that saves its state before it ends; returns what they called
    before. Signals of a thread other than the main one stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in _SIGNALS}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A block after which a signal that end_at_once handles is attended to."""
    global _held
    _held = []
    try:
        yield
    finally:
        held, _held = _held, None
        if held:
            _end(held[0], None)


def _end(number: int, frame: FrameType | None) -> None:
    if _held is not None:
        _held.append(number)
        return
    if os.getpid() == _owner:
        for path in list(_incomplete):
            _remove(path)
        with contextlib.suppress(OSError):
            if os.isatty(1):
                os.write(1, _SHOW_CURSOR)
            os.write(2, b"fastds: interrupted\n" if number == signal.SIGINT else b"fastds: terminated\n")
    os._exit(128 + number)
