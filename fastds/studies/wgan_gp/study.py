# SPDX-License-Identifier: Apache-2.0
"""The study of the WGAN-GP paper, `fastds study wgan-gp`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import xarray as xr

from fastds import models
from fastds.plot import save_png
from fastds.report import Chart, MapGrid, Maps, field_style
from fastds.studies.common.bootstrap import MIN_BLOCKS
from fastds.studies.common.figures import draw_field_maps
from fastds.studies.common.plan import Costs, estimate_step_seconds, measure_trainings
from fastds.studies.common.study import PaperStudy, run_paper_study
from fastds.studies.common.tables import ResultTable
from fastds.studies.wgan_gp.config import StudyConfig, parse_arguments
from fastds.studies.wgan_gp.evaluation import (
    call_with_prediction,
    find_most_varied_day,
    make_sample_labels,
    predict_field,
    read_test_regions,
    score,
)
from fastds.studies.wgan_gp.methods import METHODS, NETWORKS, count_paper_steps, get_scale, make_training_config
from fastds.studies.wgan_gp.tables import (
    make_charts,
    tabulate_ensembles,
    tabulate_ranking,
    tabulate_regions,
    tabulate_samples,
    tabulate_scores,
)
from fastds.tasks.humidity.config import TrainingConfig
from fastds.tasks.humidity.config import parse_arguments as parse_training
from fastds.tasks.humidity.training import train

__all__ = ["StudyConfig", "parse_arguments", "study"]
_LABEL = "relative humidity (%)"


def study(config: StudyConfig) -> pathlib.Path | None:
    """Run `fastds study wgan-gp`. Raises FileNotFoundError or ValueError for unusable files or options."""
    return run_paper_study(WganGpStudy, config)


class WganGpStudy(PaperStudy):
    """The study of the humidity WGAN-GP paper.

    Attributes:
        base: training configuration of WGAN-GP.
        scale: downscaling factor.
        align: grid convention of the coarse fields.
        regions: test regions.
        labels: day and tile of each test sample.
    """

    name, title = "wgan-gp", "Humidity WGAN-GP and what it is compared with"

    def __init__(self, config: StudyConfig):
        self.base = parse_training(["--config", cast(str, config.training), "--data.path", config.data.path])
        self.scale, self.paper_steps = get_scale(self.base), count_paper_steps(self.base)
        self.align = "grid" if self.base.data.coarsening == "decimate" else "center"
        self.regions = read_test_regions(self.base.data, self.scale, cast(int, config.data.tile))
        self.labels = make_sample_labels(self.regions)
        names = [name for name in METHODS if name not in NETWORKS or name in (config.run or NETWORKS)]
        super().__init__(config, names, NETWORKS, {})

    def measure_costs(self, networks: list[str]) -> Costs:
        options = self.run_options | {"progress": False}

        def training(name: str, steps: int, output: str) -> None:
            train(make_training_config(name, self.base, self.config.budget, steps, output=output, **options))

        return measure_trainings(training, networks)

    def make_training(self, name: str, seed: int, output: pathlib.Path) -> TrainingConfig:
        """Make the configuration of a training.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.

        Returns:
            The configuration.
        """
        options = self.run_options | {"seed": seed, "output": str(output)}
        return make_training_config(name, self.base, self.config.budget, self.steps, **options)

    def train(self, name: str, seed: int, output: pathlib.Path) -> None:
        """Train a method in a folder, or resume its training there.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.
        """
        train(self.make_training(name, seed, output))

    def measure_step_seconds(self, name: str) -> float:
        return estimate_step_seconds(train, self.make_training(name, 0, self.folder.path))

    def make_sample_table(self) -> ResultTable:
        return tabulate_samples(self.regions)

    def score(self, name: str, weights: pathlib.Path | None) -> dict[str, Any]:
        found = self._predicting(name, weights, lambda predict: score(predict, self.regions, self.base.data.range))
        if weights is None:
            return found
        return found | {"parameters": sum(p.numel() for p in models.load(weights).parameters())}

    def _predicting(self, name: str, weights: pathlib.Path | None, use) -> Any:
        c = self.config
        return call_with_prediction(name, weights, self.scale, self.align, c.members, c.threads, c.device, use)

    @staticmethod
    def _means(results: Mapping[str, list[dict[str, Any]]], kind: str) -> dict[str, dict[str, np.ndarray]]:
        """Average the scores "one" or "mean" over the seeds, for the methods that have them."""
        found = {name: [one[kind] for one in runs if kind in one] for name, runs in results.items()}
        return {name: {s: np.mean([o[s] for o in one], 0) for s in one[0]} for name, one in found.items() if one}

    def make_tables(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, ResultTable]:
        one, sizes = self._means(results, "one"), {n: r[0]["parameters"] for n, r in results.items() if n in NETWORKS}
        return {
            "scores": tabulate_scores(one, self.labels, sizes),
            "order": tabulate_ranking(one, self.labels),
            "ensembles": tabulate_ensembles(self._means(results, "mean"), self.labels, self.config.members),
            "regions": tabulate_regions(one, self.regions),
            "samples": self.make_sample_table(),
        }

    def make_charts(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Chart]:
        return make_charts(self.curves, self._means(results, "one"), self.regions)

    def draw_fields(self, results: Mapping[str, list[dict[str, Any]]]) -> Maps:
        chosen = find_most_varied_day(self.regions)
        truth = self.regions[chosen[0]].days[chosen[1], 0].numpy()

        def fields(name: str) -> np.ndarray:
            weights = self.get_first_weights(name)
            return self._predicting(name, weights, lambda predict: predict_field(predict, self.regions, chosen).numpy())

        made = {name: fields(name) for name in self.names if METHODS[name].aligned}
        save_png(
            draw_field_maps(made, truth, _LABEL, self.regions[chosen[0]].name),
            self.folder.path / "figure-10.png",
        )
        grid = MapGrid.of(xr.DataArray(truth, dims=("y", "x")))
        maps = Maps(grid, ["truth", *made], field_style(_LABEL, 0.0, 100.0))
        maps.add(f"day {chosen[1] + 1}", {"truth": truth, **made})
        return maps

    def write_notes(self) -> list[str]:
        days, tiles = (len(np.unique(column)) for column in self.labels.T)
        return [
            f"Every network is trained in {self.steps} steps on the same samples by the training "
            f"{self.config.training}, with generator, critic and losses of its method; seeds "
            f"{', '.join(map(str, self.config.seeds))}; weights of the lowest validation error. Factor {self.scale} "
            f"from {'first points' if self.align == 'grid' else 'means'} of blocks.",
            f"Intervals draw the {days} days and the {tiles} tiles of the test, not seeds; of fewer than {MIN_BLOCKS} "
            "such blocks there are none. Misaligned: interpolated as if coarse values stood elsewhere in their blocks.",
            "The paper's numbers are of its own region, level and factor 8: compare the order, not numbers.",
        ]
