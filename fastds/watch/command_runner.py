# SPDX-License-Identifier: Apache-2.0
"""The command after "--": check of its options, and its computation with models that stay loaded."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import ArgumentError

from fastds._command_arguments import collect_downscale_arguments, collect_nowcast_arguments, set_memory_retention
from fastds._messages import convert_parser_error, format_error
from fastds._options import use_option_names
from fastds._parsers import build_command_parser, get_spellings
from fastds._unknown_names import find_unknown_name, normalise_option
from fastds.data.reading import ReadOptions
from fastds.models import load
from fastds.models.checkpoint import ModelCache, use_model_cache
from fastds.tasks.api import get_task_function, list_weightless_methods

if TYPE_CHECKING:
    from fastds.tasks.nowcast.pipeline import Options

COMMANDS = ("nowcast", "downscale")
# Options that need one input, one output, or the whole archive.
_UNSUPPORTED = (
    "start", "stop", "every", "picture", "truth", "report", "workers", "scheduler", "append", "keep_going",
    "chunks", "shards", "to", "license", "creator", "identifier", "created_with",
)  # fmt: skip
_INPUT, _OUTPUT = "INPUT", "OUTPUT.nc"  # stand for the files, which are not yet known


class CommandRunner:
    """Command with its options, which computes outputs one after another.

    Args:
        words: Command line after "--": "nowcast" or "downscale" and its options.
        option_file: File with further options of the command; None: no file.

    Attributes:
        command: "nowcast" or "downscale".
        var: Variable of the command, or None.
        reading: Options of the command for reading files.

    Raises:
        ValueError: A command, an option or a value that is not allowed, or weights that cannot be read.
        FileNotFoundError: There are no such weights, or no such file of options.
    """

    def __init__(self, words: Sequence[str], option_file: Path | None = None):
        if not words or words[0] not in COMMANDS:
            given = f"got {words[0]!r}" if words else "got none"
            raise ValueError(f"the command after -- must be {' or '.join(COMMANDS)} with its options, {given}")
        self.words, self.option_file, self.command = list(words), option_file, words[0]
        self.reload()

    def reload(self) -> None:
        """Read options and weights again. After an error, those before are unchanged.

        Raises:
            ValueError, OSError: As the constructor.
        """
        words = [normalise_option(word) for word in [*self.words, *_read_option_file(self.option_file)]]
        message = find_unknown_name(words)
        if message is not None:
            raise ValueError(message)
        parser, models = build_command_parser(self.command), ModelCache()
        names = get_spellings(parser)
        with use_option_names(names), use_model_cache(models):
            try:
                options = _parse(parser, words[1:])
                _check_supported(options)
                task, arguments = _collect_arguments(self.command, options)
                _load_model(task, options.model, arguments)
            except (ValueError, OSError) as error:
                kind = OSError if isinstance(error, OSError) else ValueError
                raise kind(f"fastds {self.command}: {format_error(error)}") from error
        self.task, self.arguments, self.model, self.names, self._models = task, arguments, options.model, names, models
        self._offsets: dict[float, tuple[np.ndarray, int]] = {}
        self.var = arguments.get("var")
        self.reading: ReadOptions = {"missing": arguments.get("missing"), "units": arguments.get("units")}
        self.reading["array"] = arguments.get("array")
        # See fastds.cli: retained memory of global fields becomes fragmented.
        set_memory_retention(task != "fields")

    def find_input_offsets(self, cadence: float) -> tuple[np.ndarray, int]:
        """Return the seconds before the initialization time at which a nowcast reads fields, ascending from 0.

        The second value is the number of the first offsets at which fields are necessary, see
        fastds.tasks.nowcast.pipeline.find_input_offsets.

        Args:
            cadence: Time step of the inputs in seconds.

        Raises:
            ValueError: The options do not fit the cadence.
        """
        from fastds.tasks.nowcast.pipeline import find_input_offsets

        if cadence not in self._offsets:
            self._offsets.clear()
            with use_option_names(self.names), use_model_cache(self._models):
                self._offsets[cadence] = find_input_offsets(self.model, cadence, _make_options(self.arguments))
        return self._offsets[cadence]

    def run(self, inputs: Sequence[Path], output: Path) -> list[str]:
        """Compute an output as the command does.

        Args:
            inputs: Input files.
            output: File to write.

        Returns:
            Messages of warnings.

        Raises:
            Exception: As the function of the task.
        """
        source: Any = inputs[0] if len(inputs) == 1 else list(inputs)
        run = get_task_function(self.task, "nowcast_file" if self.task == "nowcast" else "downscale_file")
        with (
            warnings.catch_warnings(record=True) as caught,
            use_option_names(self.names),
            use_model_cache(self._models),
        ):
            warnings.simplefilter("always", UserWarning)
            run(source, output, model=self.model, **self.arguments)
        _clear_dask_names()
        return [" ".join(str(one.message).split()) for one in caught if issubclass(one.category, UserWarning)]


def _clear_dask_names() -> None:
    """Empty the cache in which dask keeps up to 100,000 names of finished tasks, which do not come again."""
    if "dask.utils" in sys.modules:
        sys.modules["dask.utils"].key_split.cache_clear()


def _read_option_file(path: Path | None) -> list[str]:
    """Return the words of a file with options, which may have comments after "#"."""
    if path is None:
        return []
    try:
        return shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(parser, words: list[str]):
    try:
        return parser.parse_args([_INPUT, _OUTPUT, *words])
    except ArgumentError as error:
        converted = convert_parser_error(error)
        _, found, rest = str(error).partition("nrecognized arguments: ")
        if found and not rest.startswith("-"):
            raise ValueError(
                f"leave out {rest.split()[0]!r}: fastds watch gives the command its input and output files"
            ) from None
        raise converted from None


def _check_supported(options) -> None:
    for name in _UNSUPPORTED:
        value = options.get(name)
        if value is not None and value is not False:
            raise ValueError(f"leave out --{name.replace('_', '-')}, which does not work with fastds watch")
    like = options.get("like")
    if like is not None and not Path(like).exists():
        raise FileNotFoundError(f"--like: no such file: {like}")


def _collect_arguments(command: str, options) -> tuple[str, dict[str, Any]]:
    if command == "downscale":
        return collect_downscale_arguments(options)
    arguments = collect_nowcast_arguments(options)
    _make_options(arguments)  # checks values
    return "nowcast", arguments


def _make_options(arguments: dict[str, Any]) -> Options:
    """Return the options of forecasts among the arguments of nowcast_file.

    Raises:
        ValueError: An invalid value.
    """
    from fastds.tasks.nowcast.pipeline import Options

    return Options(**{name: value for name, value in arguments.items() if name in Options.__annotations__})


def _load_model(task: str, model: str | None, arguments: dict[str, Any]) -> None:
    """Load the model into the cache, with the errors of the task."""
    if task == "nowcast":
        from fastds.tasks.nowcast.pipeline import select_method

        select_method(model, _make_options(arguments))
    elif task == "radar":
        from fastds.tasks.radar.methods import pick_model

        pick_model(model)
    elif model is not None and model not in list_weightless_methods():
        load(model)
