# SPDX-License-Identifier: Apache-2.0
"""The methods of a study: every network trained once for each seed, every method scored once."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastds.studies.common.folder import StudyFolder


@dataclasses.dataclass
class Runs:
    """Weights and scores of methods in the folder of a study.

    Attributes:
        study: its name, for what is said. folder: of the results.
        networks: the methods that are trained; others have one run, of seed 0, and no weights.
        seeds: of the trainings.
        train: (method, seed, folder of the run) trains, or goes on where a checkpoint is, and leaves best.safetensors.
        score: (method, weights or None) -> scores, plain data.
        progress: say on standard error what is done.
    """

    study: str
    folder: StudyFolder
    networks: Sequence[str]
    seeds: Sequence[int]
    train: Callable[[str, int, pathlib.Path], object]
    score: Callable[[str, pathlib.Path | None], dict[str, Any]]
    progress: bool = True

    def log(self, what: str) -> None:
        """A line of progress."""
        if self.progress:
            print(f"fastds study {self.study}: {what}", file=sys.stderr, flush=True)

    def get_run_folder(self, name: str, seed: int) -> pathlib.Path:
        """The folder of a training."""
        return self.folder.path / "runs" / f"{name}-{seed}"

    def get_weights(self, name: str, seed: int) -> pathlib.Path | None:
        """The weights of a network, trained now where they are not yet; None for a method without any."""
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
        """The scores of a method, one of each seed."""

        def scored(seed: int) -> dict[str, Any]:
            weights = self.get_weights(name, seed)
            self.log(f"scores of {name}" + (f", seed {seed}" if weights else ""))
            return self.score(name, weights)

        seeds = self.seeds if name in self.networks else [0]
        return [self.folder.load_or_compute(f"scores/{name}-{seed}", lambda s=seed: scored(s)) for seed in seeds]
