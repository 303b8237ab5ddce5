# SPDX-License-Identifier: Apache-2.0
"""Atomic output files, and signal handlers that remove temporary files."""

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
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_MAX_NAME_BYTES = 200  # part of a file name that a temporary name contains; the limit of file systems is 255
_SHOW_CURSOR = b"\x1b[?25h"  # progress bars hide the cursor
_incomplete: set[Path] = set()
_owner = 0  # process that removes its temporary files on a signal; forked children must not remove them
_deferred: list[int] | None = None


def check_replaceable(path: str | os.PathLike) -> None:
    """Raise ValueError if an output path is a device, a pipe or a socket."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"the output must be a regular file, {path} is a device, a pipe or a socket")


def resolve_target(path: str | os.PathLike) -> Path:
    """Return the path at which an output is written.

    For a symbolic link this is its target, so that the link is preserved; otherwise it is the path itself.

    Raises:
        ValueError: The link points to itself.
    """
    path = Path(path)
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise ValueError(f"the output {path} is a link that points to itself")
    return target


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager: yield a temporary path and rename it to `path` at the end of the block.

    If `path` is a symbolic link, its target is replaced. After an exception, the temporary file or folder is removed
    and an existing output is unchanged.

    Args:
        path: Output file or folder.

    Raises:
        OSError: The output cannot be written. If the disk is full, the message names `path`.
        ValueError: `path` is a device, a pipe, a socket or a link that points to itself.
    """
    path = Path(path)
    check_replaceable(path)
    target = resolve_target(path)
    short = os.fsencode(target.name)[:_MAX_NAME_BYTES].decode(errors="ignore")
    temporary = target.with_name(f".{short}.{os.getpid()}-{secrets.token_hex(4)}.part")
    _incomplete.add(temporary)
    try:
        yield temporary
        commit_output(temporary, target)
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRNOS:
            raise
        raise OSError(f"{path} cannot be written: {os.strerror(error.errno)}") from error
    finally:
        _remove(temporary)
        _incomplete.discard(temporary)


def commit_output(temporary: Path, path: Path) -> None:
    """Rename a complete temporary file or folder to `path`, replacing an existing output.

    If a folder is renamed, the manifest of an archive of the same name is removed.

    Args:
        temporary: Complete output.
        path: Final name.
    """
    if temporary.is_dir():
        path.with_name(f"{path.name}.manifest").unlink(missing_ok=True)
    if not path.is_dir() and not (path.exists() and temporary.is_dir()):
        os.replace(temporary, path)
        return
    old = temporary.with_suffix(".old")
    with _defer_signals():
        os.replace(path, old)
        os.replace(temporary, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def is_running_as_cli() -> bool:
    """Return True if this process is `fastds` or `python -m fastds`, and False in programs that import the package."""
    arguments = getattr(sys, "orig_argv", [])
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    return module.split(".")[0] == "fastds" or os.path.basename(sys.argv[0]) in ("fastds", "fastds.exe")


def install_signal_handlers() -> None:
    """Make SIGINT and SIGTERM end the process with one line of text and status 130 or 143, also during imports."""
    global _owner
    _owner = os.getpid()
    for number in _SIGNALS:
        signal.signal(number, _handle_signal)


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ended work that has saved its state.

    Args:
        number: Number of the signal.
        message: Message that says how to continue.

    Attributes:
        status: Exit status of the process, 128 + number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.status = 128 + number


def set_signal_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[int, object]:
    """Set a handler of SIGINT and SIGTERM for work that saves its state before it ends.

    Args:
        handler: Signal handler.

    Returns:
        Signal number -> previous handler; {} outside the main thread, where handlers cannot be set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in _SIGNALS}


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Context manager: postpone SIGINT and SIGTERM until the end of the block.

    Only signals that the handlers of install_signal_handlers receive are postponed.
    """
    global _deferred
    _deferred = []
    try:
        yield
    finally:
        held, _deferred = _deferred, None
        if held:
            _handle_signal(held[0], None)


def _handle_signal(number: int, frame: FrameType | None) -> None:
    if _deferred is not None:
        _deferred.append(number)
        return
    if os.getpid() == _owner:
        for path in list(_incomplete):
            _remove(path)
        with contextlib.suppress(OSError):
            if os.isatty(1):
                os.write(1, _SHOW_CURSOR)
            os.write(2, b"fastds: interrupted\n" if number == signal.SIGINT else b"fastds: terminated\n")
    os._exit(128 + number)
