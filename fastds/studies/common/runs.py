# SPDX-License-Identifier: Apache-2.0
"""Resumable runs of a study: stored results, and trainings and scores that are computed once."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from fastds._options import spell_name
from fastds._outputs import atomic_write
from fastds.inference.run_facts import iter_options

# Options on which no stored result depends: they may differ when a study is resumed.
_FREE = ("output", "progress", "report", "threads", "device", "run", "seeds", "plan")


def list_options(config: Any, *free: str) -> dict[str, Any]:
    """Return the options of a study on which its stored results depend.

    Args:
        config: dataclass of the options.
        free: names of further options on which no result depends.
    """
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in (*_FREE, *free)}


def suppress_warnings(call):
    """Return call() with UserWarning suppressed, for warnings that the study has already shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()


class StudyFolder:
    """Stored results of a study.

    Args:
        path: the folder; created with the first result.
        options: options that the results depend on, JSON data.

    Raises:
        ValueError: if the folder holds results of other options. The message names the first that differs, such as
            data.crop.
    """

    def __init__(self, path: str, options: dict[str, Any]):
        self.path, self.options = pathlib.Path(path), json.loads(json.dumps(options))
        file = self.path / "options.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else self.options
        before, options = dict(iter_options(stored)), dict(iter_options(self.options))
        differing = sorted(key for key in {*before, *options} if before.get(key) != options.get(key))
        if differing:
            key = differing[0]
            raise ValueError(
                f"{spell_name('output')}={path} holds a study of other options: {spell_name(key)} was "
                f"{before.get(key)!r} and is {options.get(key)!r}; {spell_name('output')}=FOLDER begins one elsewhere"
            )

    def load_or_compute(self, name: str, make: Callable[[], Any]) -> Any:
        """Load the result NAME.json, or compute it with make() and store it; the result must be JSON data."""
        file = self.path / f"{name}.json"
        if not file.exists():
            made = make()
            _write(self.path / "options.json", self.options)  # after make(), so that a failing study leaves no file
            _write(file, made)
        return json.loads(file.read_text(encoding="utf-8"))


def _write(file: pathlib.Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


@dataclasses.dataclass
class Runs:
    """Weights and scores of all methods in the folder of a study.

    Attributes:
        study: name of the study, for progress messages.
        folder: stored results.
        networks: methods that are trained; other methods have one run, with seed 0 and without weights.
        seeds: random seeds of the trainings.
        train: function of (method, seed, run folder); trains or resumes, and writes best.safetensors.
        score: function of (method, weights or None) that returns scores as JSON data.
        progress: print progress on standard error.
    """

    study: str
    folder: StudyFolder
    networks: Sequence[str]
    seeds: Sequence[int]
    train: Callable[[str, int, pathlib.Path], object]
    score: Callable[[str, pathlib.Path | None], dict[str, Any]]
    progress: bool = True

    def log(self, what: str) -> None:
        """Print a progress message."""
        if self.progress:
            print(f"fastds study {self.study}: {what}", file=sys.stderr, flush=True)

    def get_run_folder(self, name: str, seed: int) -> pathlib.Path:
        """Return the folder of a training."""
        return self.folder.path / "runs" / f"{name}-{seed}"

    def get_weights(self, name: str, seed: int) -> pathlib.Path | None:
        """Return the weights of a method and train its network if necessary; None for a method without a network."""
        if name not in self.networks:
            return None
        run, number = self.get_run_folder(name, seed), list(self.networks).index(name) + 1

        def trained() -> list[str]:
            self.log(f"training {number} of {len(self.networks)}, {name}, seed {seed}")
            self.train(name, seed, run)
            return sorted(path.name for path in run.glob("*.safetensors"))

        self.folder.load_or_compute(f"trained/{name}-{seed}", trained)
        return run / "best.safetensors"

    def get_scores(self, name: str) -> list[dict[str, Any]]:
        """Return the scores of a method, one for each seed."""

        def scored(seed: int) -> dict[str, Any]:
            weights = self.get_weights(name, seed)
            self.log(f"scores of {name}" + (f", seed {seed}" if weights else ""))
            return self.score(name, weights)

        seeds = self.seeds if name in self.networks else [0]
        return [self.folder.load_or_compute(f"scores/{name}-{seed}", functools.partial(scored, seed)) for seed in seeds]
