# SPDX-License-Identifier: Apache-2.0
"""Trainings and scores of the methods of a study, each computed once."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastds.studies.common.folder import StudyFolder


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
        """Return the weights of a network, which is trained now if needed; None for a method without a network."""
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
        return [self.folder.load_or_compute(f"scores/{name}-{seed}", lambda s=seed: scored(s)) for seed in seeds]
