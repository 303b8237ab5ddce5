# SPDX-License-Identifier: Apache-2.0
"""Evaluation of an archive by several workers: each scores some items, and the scores are added in a fixed order."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastds._options import OptionError, spell_argument
from fastds.archive.workers import CHUNKS_AHEAD, check_workers, choose_threads, open_cluster
from fastds.data.packages import require
from fastds.data.reading import InputData, is_path_like, open_input
from fastds.inference.chunking import split_range
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.scoring import EvaluationItems, ScoreSums, score_item
from fastds.tasks.api import READ_OPTIONS, evaluate_in_processes, get_input_name

if TYPE_CHECKING:
    from fastds.inference.tables import ScoreTables

_SCORING_OPTIONS = "var", "z_r", "baselines"  # options of fastds.evaluate that the scores of an item depend on
_EVALUATE_OPTIONS = (
    "input", "var", "z_r", "baselines", "model", "report", "missing", "units", "array", "start", "stop",
    "progress",
)  # fmt: skip
_MAX_ITEMS = 8  # largest number of items of a task
_TASKS_PER_WORKER = 4  # smallest number of tasks of a worker, so that all workers end at about the same time


def evaluate_archive(
    prediction: InputData,
    truth: InputData,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int | None = None,
    input: InputData | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
    model: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    missing: float | None = None,
    units: str | None = None,
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    progress: bool = False,
) -> ScoreTables:
    """Evaluate files as fastds.evaluate does, with several processes.

    Args:
        prediction: Files, see fastds.evaluate.
        truth: Files, see fastds.evaluate.
        workers: Number of processes on this machine; 1: this process.
        scheduler: Address or file of a dask scheduler whose workers are used instead.
        threads: Threads of torch in each worker; None: the cores of this machine divided by the number of workers.
        input: Files, see fastds.evaluate.
        var: Name of the variable. Default: the only one that fits; fields: all.
        z_r: a and b of the Z-R relation.
        baselines: Names of the baselines to compare.
        model: Name or file of the weights whose card is in the report.
        report: Must be None, because one process writes a report: use fastds.evaluate.
        missing: Value that marks missing data in truth and input.
        units: Units of the variable in truth and input.
        array: Layout of raw binary files, see fastds.data.open_array.
        start: First time of truth and input to use.
        stop: Last time of truth and input to use.
        progress: Show a progress bar.

    Returns:
        The table of scores, with the same bits as from one process with as many threads.

    Raises:
        ImportError: distributed is not installed.
        OSError: The scheduler cannot be reached.
        ValueError: Data are not files, options are inconsistent, or an error of fastds.evaluate.
    """
    arguments = dict(locals())
    options = {
        name: arguments[name]
        for name in _EVALUATE_OPTIONS
        if arguments[name] is not None and arguments[name] is not False
    }
    _check_arguments(workers, scheduler, options | {"prediction": prediction, "truth": truth})
    if workers == 1:
        with inference_context(None, resolve_execution(None, threads)):
            return evaluate_in_processes(prediction, truth, None, **options)
    threads = choose_threads(threads, workers, scheduler)
    files = tuple(_normalise_paths(data) for data in (prediction, truth, options.get("input")))
    reading, scoring = (
        {name: options[name] for name in names if name in options} for names in (READ_OPTIONS, _SCORING_OPTIONS)
    )
    request = _Request(files, reading, scoring, threads)
    with open_cluster(workers or 0, scheduler) as (client, count, _):
        return evaluate_in_processes(
            prediction, truth, lambda task: _RemoteScores(client, count, request, task), **options
        )


def _check_arguments(workers: int | None, scheduler: str | None, options: dict[str, Any]) -> None:
    """Raise ValueError for arguments that several processes cannot handle."""
    require("distributed", "several workers")
    for name in ("prediction", "truth", "input"):
        if options.get(name) is not None and not is_path_like(options[name]):
            raise OptionError(name, f"must be files, which workers open, got a {type(options[name]).__name__}")
    if options.get("report") is not None:
        raise OptionError("report", f"is written by one process: leave out {spell_argument('workers', 'scheduler')}")
    if workers is None and scheduler is None:
        raise ValueError(f"give one of {spell_argument('workers', 'scheduler')}, got None and None")
    check_workers(workers, scheduler)


@dataclasses.dataclass(frozen=True)
class _Request:
    """Files and options from which a worker computes scores.

    Attributes:
        files: Files of prediction, truth and input.
        reading: Options of reading truth and input.
        options: Options of the task's EvaluationItems.
        threads: Threads of torch.
    """

    files: tuple[tuple[str, ...] | str | None, ...]
    reading: dict[str, Any]
    options: dict[str, Any]
    threads: int | None

    def __hash__(self) -> int:
        return hash(self.files)


def _normalise_paths(data: InputData | None) -> tuple[str, ...] | str | None:
    if data is None:
        return None
    return os.fspath(data) if isinstance(data, str | os.PathLike) else tuple(map(os.fspath, data))


class _RemoteScores:
    """Function of the number of items that yields scores from the workers of a dask client.

    This is a fastds.inference.scoring.ScoreItems. A limited number of tasks is submitted ahead for each worker.
    """

    def __init__(self, client, workers: int, request: _Request, task: str):
        self.client, self.workers, self.request, self.task = client, workers, request, task

    def __call__(self, count: int) -> Iterator[ScoreSums]:
        size = max(1, min(_MAX_ITEMS, math.ceil(count / (_TASKS_PER_WORKER * self.workers))))
        parts = itertools.starmap(range, split_range(0, count, size))
        waiting = collections.deque(map(self._submit, itertools.islice(parts, CHUNKS_AHEAD * self.workers)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(self._submit, itertools.islice(parts, 1)))

    def _submit(self, numbers: Iterable[int]):
        return self.client.submit(_score_items, self.request, self.task, numbers, pure=False)


def _score_items(request: _Request, task: str, numbers: Iterable[int]) -> list[ScoreSums]:
    """Return the scores of some items. Warnings are suppressed, since the main process has already shown them."""
    with warnings.catch_warnings(), inference_context(None, resolve_execution(None, request.threads)):
        warnings.simplefilter("ignore")
        scoring = _open_scoring(request, task)
        return [score_item(scoring, number) for number in numbers]


@functools.lru_cache(maxsize=1)
def _open_scoring(request: _Request, task: str) -> EvaluationItems:
    """Open the files of a request once in every process and return the task's EvaluationItems."""
    files: Sequence[Any] = request.files
    prediction, *others = files
    var = request.options.get("var")
    datasets = (
        open_input(prediction, array=request.reading.get("array")),
        *(open_input(data, var, **request.reading) for data in others),
    )
    p, t, source = (dataset.__enter__() for dataset in datasets)
    module = importlib.import_module(f"fastds.tasks.{task}.evaluation")
    return module.EvaluationItems(p, t, **{get_input_name(task): source}, **request.options)
