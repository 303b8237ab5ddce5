# SPDX-License-Identifier: Apache-2.0
"""The study of the DB-RNN paper, `fastds study db-rnn`."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from fastds import models
from fastds._options import spell_name
from fastds.data import FrameStore, TimeBlock, normalised_rates
from fastds.inference.execution import resolve_device
from fastds.models.card import Network
from fastds.models.db_rnn.discriminator import select_variant
from fastds.report import Chart, Maps
from fastds.studies.common.bootstrap import describe_intervals, make_block_labels
from fastds.studies.common.config import PAPER, time_call
from fastds.studies.common.plan import FORWARD, START, Costs, measure_cost, time_second_call, time_step
from fastds.studies.common.radar import (
    EvaluationBlock,
    find_files,
    find_most_echo,
    read_grid,
    resolve_path,
    tabulate_samples,
)
from fastds.studies.common.runs import suppress_warnings
from fastds.studies.common.study import PaperStudy, run_paper_study
from fastds.studies.common.tables import ResultTable
from fastds.studies.db_rnn.config import StudyConfig, parse_arguments
from fastds.studies.db_rnn.evaluation import (
    Predict,
    ScoreSums,
    call_with_prediction,
    count_frames,
    make_long_samples,
    make_training_data,
    read_test_block,
    score,
    score_long,
)
from fastds.studies.db_rnn.methods import (
    ABSENT,
    CELLS,
    CROP,
    FUTURE,
    KNOWN,
    METHODS,
    VALIDATED,
    load_paper_config,
    make_network_options,
    make_training_config,
    select_preset,
)
from fastds.studies.db_rnn.tables import (
    draw_maps,
    make_line_charts,
    make_long_charts,
    make_maps,
    make_tables,
    tabulate_complexity,
    tabulate_long_scores,
    to_dbz,
)
from fastds.tasks.nowcast.config import DataConfig as TrainingData
from fastds.tasks.nowcast.config import TrainingConfig
from fastds.tasks.nowcast.samples import NowcastData
from fastds.tasks.nowcast.training import NowcastModule, build_model, train

_STEPS = 100  # number of steps in the measured configuration


def measure_costs(config: StudyConfig, names: list[str], data: TrainingData, blocks: list[EvaluationBlock]) -> Costs:
    """Measure the costs of methods.

    Args:
        config: options of the study.
        names: methods that are trained.
        data: samples of the trainings.
        blocks: test samples.
    """
    training = make_training_config("SimVP", config.ablation, config.budget, _STEPS, data, config.data.z_r).data
    began = time.perf_counter()
    samples = NowcastData(training, moving=False)
    suppress_warnings(samples.setup)
    setup, number = time.perf_counter() - began, iter(range(10_000))
    a_sample = time_call(lambda: samples.training[next(number)], most=20)
    drawn = [samples.training[k] for k in range(training.batch_size)]
    batch = {key: torch.stack([sample[key] for sample in drawn]).to(resolve_device(config.device)) for key in drawn[0]}
    found = {name: _time_method(config, name, data, batch, blocks[0].samples[0]["x"]) for name in names}
    tested = sum(len(b.samples) * b.samples[0]["y"][0].numel() for b in blocks)
    validated = 8 * VALIDATED * training.crop**2
    scoring = _time_scoring(blocks, config.data.z_r)
    fixed = sum(START + setup + scoring + (tested + validated) * a_pixel for _, a_pixel in found.values())
    return Costs({name: s + training.batch_size * a_sample for name, (s, _) in found.items()}, fixed + 2 * scoring)


def time_one_sample(training: TrainingConfig, device: str) -> float:
    """Estimate the time of a training step in seconds.

    The estimate is the batch size times the time of forward and backward pass for one sample. It does not include the
    discriminator or the reading of samples.

    Args:
        training: configuration of the training.
        device: device of the network.
    """
    c = training.data
    module = NowcastModule(build_model(training), training).to(resolve_device(device))
    frames = torch.rand(1, c.known + c.future, 1, c.crop, c.crop, device=next(module.parameters()).device)
    batch = {"frames": frames, "valid": torch.ones_like(frames, dtype=torch.bool)}
    return c.batch_size * time_second_call(lambda: module.loss(module(batch), batch).backward())


def _time_method(
    config: StudyConfig, name: str, data: TrainingData, batch: dict, known: torch.Tensor
) -> tuple[float, float]:
    """Measure the seconds of a step without reading samples, and of the forecast of one pixel.

    A staged network has two halves, trained one after the other; both are estimated from the MS network.

    Args:
        config: options of the study.
        name: the method.
        data: samples of the trainings.
        batch: a batch of samples.
        known: input frames of a test sample.
    """
    staged = METHODS[name].kind == "staged"
    trained = name.removesuffix("-S") if staged else name
    training = make_training_config(trained, config.ablation, config.budget, _STEPS, data, config.data.z_r)
    device = next(iter(batch.values())).device
    module, known = NowcastModule(build_model(training), training).to(device), known[None].to(device)

    def forecast() -> float:
        with torch.no_grad():
            return float(module.model.forecast(known, FUTURE).sum())

    step = time_step(module, batch) * (1 + FORWARD * staged)
    module.eval()
    return step, time_call(forecast, most=3) / known[0, 0].numel() * (1 + staged)


def _time_scoring(blocks: list[EvaluationBlock], z_r: list[float]) -> float:
    """Estimate the seconds of scoring one method."""
    one = EvaluationBlock(blocks[0].name, blocks[0].samples[:1], [0], blocks[0].window, 1.0)
    a_pixel = time_call(lambda: score(lambda s, steps: s["y"], [one], z_r), most=2) / one.samples[0]["y"].numel()
    return a_pixel * sum(len(b.samples) * b.samples[0]["y"].numel() for b in blocks)


__all__ = ["StudyConfig", "parse_arguments", "study"]
_HEAVY = 10.0  # mm/h: the sample with the largest area above it is drawn
_INTERVALS = {"hko-7": "second", "dwd-12": "fifth"}  # section V-B of the paper


def study(config: StudyConfig) -> pathlib.Path | None:
    """Run `fastds study db-rnn`. Raises FileNotFoundError or ValueError for unusable files or options."""
    return run_paper_study(DbRnnStudy, config)


def select_methods(run: list[str], ablation: str) -> list[str]:
    """Select the methods of a study: the requested ones, those that they need, and all methods without training.

    A staged network needs the MS network that is its forecaster. The row of the ablation table that is also in the main
    table needs the DB network of the main table.

    Args:
        run: requested methods; empty: all.
        ablation: cell of the ablation, a key of CELLS.
    """
    requested = set(run or METHODS)
    requested |= {name.removesuffix("-S") for name in requested if METHODS[name].kind == "staged"}
    requested |= {f"DB-{ablation}"} if get_shared_row(ablation) in requested else set()
    return [name for name, method in METHODS.items() if name in requested or not method.kind]


def get_shared_row(ablation: str) -> str:
    """Return the row of the ablation table that is also a row of the main table."""
    return f"DB-discriminator-{select_variant(CELLS[ablation])}"


class DbRnnStudy(PaperStudy):
    """The study of the DB-RNN paper.

    Attributes:
        files: file -> its parts.
        data: samples of the trainings.
        blocks: test samples.
        labels: block of time of each test sample.
        minutes: lead times.
    """

    name, title = "db-rnn", "DB-RNN and what it is compared with"

    def __init__(self, config: StudyConfig):
        least, tested = (count_frames(config.data, leads) for leads in (1, max(1, config.long_leads)))
        paper = load_paper_config("MS-ConvLSTM", config.ablation, config.data.path)
        self.paper_steps, crop = paper.last_step(), paper.data.crop if config.budget == PAPER else CROP
        self.files = find_files(config.data, crop * config.data.scale, least, tested)
        self.data = make_training_data(config.data, self.files)
        self.blocks = [read_test_block(config.data, name, part["test"]) for name, part in self.files.items()]
        self.labels = make_block_labels(block.blocks for block in self.blocks)
        self.minutes = self._compute_minutes(config)
        names = [
            name for name in select_methods(config.run, config.ablation) if name != get_shared_row(config.ablation)
        ]
        networks = [name for name in names if METHODS[name].kind]
        super().__init__(config, names, networks, {"files": self.files})

    def _compute_minutes(self, config: StudyConfig) -> list[str]:
        """Compute the lead times for the first file; those of other files may differ."""
        cadence = FrameStore(
            TimeBlock(str(resolve_path(config.data, next(iter(self.files)))), 0, 3, config.data.var)
        ).cadence
        return [f"{cadence * config.data.interval * k / 60:g}" for k in range(1, FUTURE + 1)]

    def measure_costs(self, networks: list[str]) -> Costs:
        return measure_costs(self.config, networks, self.data, self.blocks)

    def make_training(self, name: str, seed: int, output: pathlib.Path) -> TrainingConfig:
        """Make the configuration of a training.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.

        Returns:
            The configuration.
        """
        c = self.config
        options = self.run_options | {"seed": seed, "output": str(output)}
        start = str(output / "start.safetensors") if METHODS[name].kind == "staged" else None
        return make_training_config(name, c.ablation, c.budget, self.steps, self.data, c.data.z_r, start, **options)

    def train(self, name: str, seed: int, output: pathlib.Path) -> None:
        """Train a method in a folder, or resume its training there.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.
        """
        if METHODS[name].kind == "staged":
            self._save_forecaster(name, seed, output)
        train(self.make_training(name, seed, output))

    def measure_step_seconds(self, name: str) -> float:
        trained = name.removesuffix("-S")  # both stages have the network of this method
        return time_one_sample(self.make_training(trained, 0, self.folder.path), self.config.device)

    def make_sample_table(self) -> ResultTable:
        return tabulate_samples(self.blocks, self.files)

    def _save_forecaster(self, name: str, seed: int, output: pathlib.Path) -> None:
        """Write start.safetensors, a staged network whose forecaster has the weights of the trained MS network."""
        trained = suppress_warnings(
            lambda: models.load(cast(pathlib.Path, self.runs.get_weights(name.removesuffix("-S"), seed)))
        )
        staged: Network = models.create(
            select_preset(name, "")[0], **make_network_options(name, "", self.config.budget)
        )
        staged.forecaster.load_state_dict(trained.state_dict())
        staged.card = trained.card
        output.mkdir(parents=True, exist_ok=True)
        models.save(staged, output / "start.safetensors")

    def score(self, name: str, weights: pathlib.Path | None) -> dict[str, Any]:
        found = self._predicting(name, weights, self._score)
        if weights is None:
            return found
        model = suppress_warnings(lambda: models.load(weights))
        width = model.config.get("hidden") or model.config["spatial"]
        return found | {"width": width, "parameters": sum(p.numel() for p in model.parameters())}

    def _score(self, predict: Predict) -> dict[str, Any]:
        c = self.config
        found = score(predict, self.blocks, c.data.z_r)
        if c.long_leads:
            found["long"] = score_long(predict, self._long_samples, c.data.z_r)
        return found

    @functools.cached_property
    def _long_samples(self) -> list[dict[str, torch.Tensor]]:
        """Test samples of long forecasts, the same for every method."""
        c = self.config
        return [
            sample
            for block in self.blocks
            for sample in make_long_samples(c.data, block, self.files[block.name]["test"], c.long_leads)
        ]

    def _predicting(self, name: str, weights: pathlib.Path | None, use) -> Any:
        c = self.config
        return call_with_prediction(name, weights, c.threads, c.device, use, c.restart)

    def _sums(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, ScoreSums]:
        """Collect the scores of the forecast frames by row of the tables."""
        sums, cell = {name: ScoreSums(found) for name, found in results.items()}, self.config.ablation
        same = {get_shared_row(cell): f"DB-{cell}", "MS": f"MS-{cell}"}
        return sums | {row: sums[name] for row, name in same.items() if name in sums}

    def _long(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, np.ndarray]:
        """Collect the contingency tables of long forecasts by method."""
        return {name: np.array([one["long"] for one in found]) for name, found in results.items() if "long" in found[0]}

    def make_tables(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, ResultTable]:
        sizes = {n: (one[0]["width"], one[0]["parameters"]) for n, one in results.items() if "width" in one[0]}
        whole = {name: ScoreSums([one["all"] for one in found]) for name, found in results.items() if "all" in found[0]}
        made = make_tables(self._sums(results), whole, self.labels, sizes, self.minutes, self.config.published)
        if long := self._long(results):
            made["long"] = tabulate_long_scores(long, self._format_hours())
        if costs := {name: self._cost(name) for name in self.runs.networks if name in results}:
            made["complexity"] = tabulate_complexity(costs, self.seconds)
        return made | {"samples": self.make_sample_table()}

    def _format_hours(self) -> list[str]:
        """Format the last lead time of each part of long forecasts, in hours."""
        return [f"{float(self.minutes[-1]) * k / 60:g}" for k in range(1, self.config.long_leads + 1)]

    def _cost(self, name: str) -> dict[str, float]:
        """Measure the costs of a network for all frames that it forecasts, with measure_cost.

        The sizes are those of the training samples.
        """
        c = self.config
        network, options = select_preset(name, c.ablation)[0], make_network_options(name, c.ablation, c.budget)
        training = make_training_config(
            name, c.ablation, c.budget, 1, self.data, c.data.z_r, "weights of the MS network"
        )
        side = training.data.crop

        def inputs(batch: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(batch, KNOWN, 1, side, side), FUTURE

        def cost() -> dict[str, float]:
            return measure_cost(models.create(network, **options), inputs, training.data.batch_size)

        return self.folder.load_or_compute(f"costs/{name}", cost)

    def make_charts(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Chart]:
        made = make_line_charts(self.curves, self._sums(results), self.minutes)
        return made | make_long_charts(self._long(results), self._format_hours())

    def draw_fields(self, results: Mapping[str, list[dict[str, Any]]]) -> Maps:
        block, number = find_most_echo(self.blocks, normalised_rates([_HEAVY], tuple(self.config.data.z_r))[0])
        sample = block.samples[number]

        def fields(name: str) -> np.ndarray:
            def drawn(predict: Predict) -> np.ndarray:
                return to_dbz(predict(sample, FUTURE)[-FUTURE:])

            return self._predicting(name, self.get_first_weights(name), drawn)

        made, grid = {name: fields(name) for name in self.names}, read_grid(self.config.data, block, number)
        title = f"{block.name}: truth, forecasts, differences"
        draw_maps(self.folder.path, made, sample, self.minutes, grid, title)
        return make_maps(grid, made, sample, self.minutes)

    def write_notes(self) -> list[str]:
        paper = self.config.budget == PAPER
        small = "" if paper else "; networks in the small, those of the paper are 24 wide and SimVP 64"
        twice = ", DB networks in twice as many as in the paper" if paper else ", DB networks in as many as others"
        return [
            f"Every network is trained in {self.steps} steps on the same samples{twice} (the paper's losses, "
            f"{self.describe_optimiser()}, weights of the lowest validation error); a staged network's deblurrer "
            "takes as many again on the forecasts of the MS network. "
            f"Seeds {', '.join(map(str, self.config.seeds))}{small}.",
            f"Scores are means over the {FUTURE} frames to forecast; tables all-frames are means that include the four "
            "forecasts of known frames, as the paper's public code has it. The paper's scores are of "
            f"{self.config.published}, of which it takes every {_INTERVALS[self.config.published]} frame; "
            f"{spell_name('data.interval')} is {self.config.data.interval} here.",
            f"{' and '.join(ABSENT)} of the paper's table VII are not in fastds.",
            "Multiply-adds are those that are computed: the attention of PrecipLSTM counts, which it does not in the "
            "paper, and products with the zero states of the first step and of the embedding, which is folded into the "
            "first convolution, do not. Memory is that of the tensors saved for the gradients and of Adam's.",
            f"Losses and discriminators are tried on {self.config.ablation}; the paper's numbers are of PrecipLSTM. "
            f"{get_shared_row(self.config.ablation)} is DB-{self.config.ablation}.",
            f"{describe_intervals(self.labels)} "
            f"Rain rates by Z = {self.config.data.z_r[0]:g} R^{self.config.data.z_r[1]:g}.",
        ]
