# SPDX-License-Identifier: Apache-2.0
"""Evaluate an archive by several workers: each scores some items, and their scores are added up in order."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastds.archive.workers import AHEAD, check_workers, cluster, threads_of
from fastds.data.packages import require
from fastds.data.reading import Data, are_paths, opened
from fastds.inference.chunking import split_range
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.scoring import EvaluationItems, ScoreSums, score_item
from fastds.tasks.api import READ_OPTIONS, evaluate_in_processes, get_input_name

if TYPE_CHECKING:
    from fastds.inference.tables import ScoreTables

_OWN = "var", "z_r", "baselines"  # options that items depend on
_MOST_ITEMS = 8  # of a task
_TASKS_A_WORKER = 4  # at least, so that all end at about the same time


def evaluate_archive(
    prediction: Data,
    truth: Data,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> ScoreTables:
    """What fastds.evaluate gives of files, scored by several processes.

    Args:
        prediction, truth: files, as in fastds.evaluate; options: its others but report, which is of one process.
        workers: processes on this machine, 1: this one. scheduler: address or file of a dask scheduler, whose workers
            are taken instead.
        threads: of torch in each worker; None: the cores of this machine shared by its workers.

    Returns: the table, with the bits that one process gives with as many threads.

    Raises: ValueError for data that are no files and for options that do not go together; OSError where no scheduler
        answers; what fastds.evaluate raises.
    """
    _check(workers, scheduler, options | {"prediction": prediction, "truth": truth})
    if workers == 1:
        with inference_context(None, resolve_execution(None, threads)):
            return evaluate_in_processes(prediction, truth, None, **options)
    threads = threads_of(threads, workers, scheduler)
    files = tuple(_names(data) for data in (prediction, truth, options.get("input")))
    reading, own = ({name: options[name] for name in some if name in options} for some in (READ_OPTIONS, _OWN))
    request = _Request(files, reading, own, threads)
    with cluster(workers or 0, scheduler) as (client, count, _):
        return evaluate_in_processes(prediction, truth, lambda task: _Far(client, count, request, task), **options)


def _check(workers: int | None, scheduler: str | None, options: dict[str, Any]) -> None:
    require("distributed", "several workers")
    for name in ("prediction", "truth", "input"):
        if options.get(name) is not None and not are_paths(options[name]):
            raise ValueError(f"{name} must be files, which workers open, got a {type(options[name]).__name__}")
    if options.get("report") is not None:
        raise ValueError("report is written by one process: leave out workers and scheduler")
    if workers is None and scheduler is None:
        raise ValueError("give one of the arguments workers and scheduler, got None and None")
    check_workers(workers, scheduler)


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a worker opens: prediction, truth and input, how the latter two are read, and options of the task's
    Scoring; threads: of torch."""

    files: tuple[tuple[str, ...] | str | None, ...]
    reading: dict[str, Any]
    options: dict[str, Any]
    threads: int | None

    def __hash__(self) -> int:
        return hash(self.files)


def _names(data: Data | None) -> tuple[str, ...] | str | None:
    if data is None:
        return None
    return os.fspath(data) if isinstance(data, str | os.PathLike) else tuple(map(os.fspath, data))


class _Far:
    """See fastds.inference.scoring.ScoreItems: the workers of a dask client, a few tasks ahead for each."""

    def __init__(self, client, workers: int, request: _Request, task: str):
        self.client, self.workers, self.request, self.task = client, workers, request, task

    def __call__(self, count: int) -> Iterator[ScoreSums]:
        size = max(1, min(_MOST_ITEMS, math.ceil(count / (_TASKS_A_WORKER * self.workers))))
        parts = itertools.starmap(range, split_range(0, count, size))
        waiting = collections.deque(map(self._submit, itertools.islice(parts, AHEAD * self.workers)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(self._submit, itertools.islice(parts, 1)))

    def _submit(self, numbers: Iterable[int]):
        return self.client.submit(_scores, self.request, self.task, numbers, pure=False)


def _scores(request: _Request, task: str, numbers: Iterable[int]) -> list[ScoreSums]:
    """The scores of some items, one by one; this process has warned of the files already."""
    with warnings.catch_warnings(), inference_context(None, resolve_execution(None, request.threads)):
        warnings.simplefilter("ignore")
        scoring = _opened(request, task)
        return [score_item(scoring, number) for number in numbers]


@functools.lru_cache(maxsize=1)
def _opened(request: _Request, task: str) -> EvaluationItems:
    """The items of a request, opened once in every process and kept."""
    prediction, *others = request.files
    var = request.options.get("var")
    datasets = opened(prediction), *(opened(data, var, **request.reading) for data in others)
    p, t, source = (dataset.__enter__() for dataset in datasets)
    module = importlib.import_module(f"fastds.tasks.{task}.evaluation")
    return module.EvaluationItems(p, t, **{get_input_name(task): source}, **request.options)
