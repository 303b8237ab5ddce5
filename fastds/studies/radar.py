# SPDX-License-Identifier: Apache-2.0
"""Errors of a downscaling model on test blocks of radar files: `fastds study radar --data.path FOLDER`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from fastds import data as fd
from fastds import metrics, models
from fastds.data.grid.variables import parse_duration
from fastds.data.radar.preparation import COARSENING_MODES
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.tables import format_number, make_score_table
from fastds.inference.tiling import Tile
from fastds.metrics import EnsembleScores, spectral_ratio
from fastds.metrics.errors import CEILING_DBZ
from fastds.models.card import Network
from fastds.models.ensembles.downscaling_features import WET_SHARE_INDEX
from fastds.report import check_report
from fastds.studies.command import Files
from fastds.studies.common.bootstrap import Estimate, make_block_labels
from fastds.studies.report import write_rows, write_study
from fastds.tasks.radar.back_projection import back_project
from fastds.tasks.radar.members import MIN_ECHO_SHARE, RadarEnsemble, make_details
from fastds.tasks.radar.methods import BASELINES, needs_context, needs_flow
from fastds.tasks.radar.motion import smooth_pair_flow
from fastds.tasks.radar.refinement import FrameRefiner
from fastds.tasks.radar.steady import match_end_frames
from fastds.training.command import read_command_line

SCORES = "CRPS / MAE", "spread/skill", "detail", "detail of mean field", "rain area / truth's"
_BAND = (2.0, 4.0)
_TIMES = {"at input times": (0, 2), "between": (1,)}


def score_members(samples: Sequence[dict[str, Tensor]], model: Network, count: int) -> dict[str, list[float]]:
    """Score an ensemble at input times and at interpolated times on pixels near echo.

    Args:
        samples: dicts of x (2, 1, h, w), y and valid (3, 1, H, W), normalised by the model card, and neighbours (see
            Block).
        model: the network.
        count: number of members.

    Returns:
        A dictionary from the kind of time to the numbers of SCORES. They are: the CRPS over the mean absolute error of
            the output of the network; spread over skill; the power at wavelengths of 2 to 4 pixels over that of the
            truth, for a member and for the output of the network; the area above the floor over that of the truth.
    """
    members, span = RadarEnsemble(count, 0, model.card), model.card.ceiling_dbz - model.card.floor_dbz
    found = {times: _MemberSums() for times in _TIMES}
    for number, sample in enumerate(samples):
        x = sample["x"]
        before, after = sample["neighbours"]
        flow = smooth_pair_flow(before, x[:, 0], after)[None]
        with torch.inference_mode():
            y = run_network(model, x[None], flow, before, after)[0, :, 0].clamp(0, 1)
        read = make_details(y, x[:, 0], flow[0], model.card)
        for times, places in _TIMES.items():
            for k in places:
                drawn = members.draw_between(read, number) if k == 1 else members.draw_at_input(read[k], (number, k))
                near = sample["valid"][k, 0] & (read[k].compute_all()[WET_SHARE_INDEX] > MIN_ECHO_SHARE)
                found[times].add(drawn * span, y[k] * span, sample["y"][k, 0] * span, near, sample["valid"][k, 0])
    return {times: sums.compute_means() for times, sums in found.items() if sums.count}


class _MemberSums:
    """Sums of errors, areas and spectra over fields."""

    def __init__(self):
        self.scores, self.count = EnsembleScores(), 0
        self.error, self.areas, self.details = np.zeros(2), np.zeros(2), []

    def add(self, drawn: Tensor, single: Tensor, truth: Tensor, near: Tensor, valid: Tensor) -> None:
        """Add one field.

        Args:
            drawn: (M, H, W) members, dB above the floor.
            single: (H, W) the network's field, dB above the floor.
            truth: (H, W) dB above the floor.
            near: (H, W) pixels that are scored.
            valid: (H, W) pixels where the truth is known.
        """
        if not near.any():
            return
        self.count += 1
        seen = torch.where(near, truth, torch.nan)
        self.scores.add(drawn, seen, torch.ones(truth.shape))
        self.error += [(single - truth)[near].abs().sum().item(), near.sum().item()]
        self.areas += [(drawn > 0)[:, near].double().mean(0).sum().item(), (truth > 0)[near].sum().item()]
        known = torch.where(valid, truth, torch.nan)[None]
        self.details.append([spectral_ratio(z[None], known, 0.0, (_BAND,))[_BAND] for z in (drawn[0], single)])

    def compute_means(self) -> list[float]:
        """Compute the numbers of SCORES."""
        scores, error = self.scores.means(), self.error[0] / self.error[1]
        detail = np.nanmean(self.details, 0)
        return [scores["crps"] / error, scores["spread_skill"], *detail, self.areas[0] / self.areas[1]]


# File -> (first frame, frame after the last, spacing of the triples in intervals). The FMI and KNMI frames are later
# than the training blocks of fastds/tasks/radar/configs/fczsm-small.yaml. No training configuration uses the other
# files, but the file of 2018-05-14 covers the region of two training files, which are from the days before and after.
TEST_BLOCKS = {
    "radar_fmi_20160928_5min.nc": (22, 30, 1),
    "radar_knmi_20100826_5min.nc": (76, 92, 1),
    "radar_mch_20160711_5min.nc": (0, None, 5),
    "radar_opera_20180824_15min.nc": (0, None, 3),
    "radar_bom_melbourne_20180616_6min.nc": (0, None, 4),
    "radar_dpc_north_20250416_5min.nc": (0, None, 11),
    "radar_dpc_sardinia_20250416_5min.nc": (0, None, 11),
    "radar_dwd_yw_20170816_5min.nc": (0, None, 3),
    "radar_dwd_yw_crop_20180514_5min.nc": (0, None, 10),
    "radar_meteonet_nw_20180312_5min.nc": (0, None, 2),
    "radar_unica_xband_20250416_5min.nc": (0, None, 4),
}
NO_ECHO_DBZ = -32.0
MARGIN = 2  # fine pixels this close to the edge or to missing pixels are not scored


@dataclasses.dataclass
class Block:
    """Samples of one test block.

    Attributes:
        name: name of the file.
        floor: lower end in dBZ of the normalisation of x and y.
        samples: dicts of x (2, 1, h, w), y and valid (3, 1, H, W), and neighbours. The value of neighbours is a list of
            the two coarse frames (2, h, w) before x and of the two after x; None where the block has none.
        blocks: number of the block of time of each sample.
    """

    name: str
    floor: float
    samples: list[dict]
    blocks: list[int]


def read_test_block(
    folder: str | os.PathLike,
    file: str,
    floor: float = 15.0,
    interval: int = 1,
    scale: int = 1,
    mode: str = "dbz",
    seconds: float = 1800.0,
) -> Block:
    """Read the test block of a file.

    Args:
        folder: folder with the radar files.
        file: name of a file of TEST_BLOCKS.
        floor: lower end in dBZ of the normalisation.
        interval: frames of the file from one frame of a sample to the next.
        scale: additional coarsening factor of the grid.
        mode: coarsening operator of the input, see EvaluationTriples.
        seconds: length of a block of time.
    """
    start, stop, every = TEST_BLOCKS[file]
    source = fd.TimeBlock(str(pathlib.Path(folder) / file), start, stop)
    triples = fd.EvaluationTriples(source, interval=interval, scale=scale, floor=floor, mode=mode)
    places = {tuple(index): number for number, index in enumerate(triples.index)}
    chosen = triples.store.triples(interval, every if interval == 1 else 1)
    samples: list[dict[str, Any]] = [dict(triples[places[tuple(index)]]) for index in chosen]
    for sample, index in zip(samples, chosen, strict=True):
        length = index[2] - index[0]
        found = (places.get(tuple(index + step)) for step in (-length, length))
        sample["neighbours"] = [None if number is None else triples[number]["x"][:, 0] for number in found]
        sample["valid"] = metrics.interior(sample["valid"].all(dim=0, keepdim=True), MARGIN).expand_as(sample["y"])
    starts = triples.store.seconds[chosen[:, 0]]
    return Block(file, floor, samples, [int(start // seconds) for start in starts])


def compute_sample_errors(block: Block, method: Callable) -> list[dict[str, float]]:
    """Compute radar_errors of a method for each sample.

    Args:
        block: the samples.
        method: function from a sample to frames (1, 3, 1, H, W), normalised with the floor of the block.
    """
    found = []
    with torch.inference_mode():
        for sample in block.samples:
            fields = method(sample)[0, :, 0], sample["y"][:, 0]
            p, t = (fd.restore(z, block.floor, CEILING_DBZ) for z in fields)
            found.append(metrics.radar_errors(p, t, sample["valid"][:, 0], block.floor, with_ssim=False))
    return found


def compute_errors(block: Block, method: Callable) -> dict[str, float]:
    """Compute radar_errors of a method over all samples, see compute_sample_errors."""
    return pool_errors(compute_sample_errors(block, method))


def pool_errors(found: list[dict[str, float]]) -> dict[str, float]:
    """Combine the radar_errors of several samples to means weighted by the number of valid pixels."""
    pixels = np.array([one["pixels"] for one in found])
    if not pixels.any():
        return found[0]
    valid = [one for one in found if one["pixels"]]  # a sample without valid pixels has NaN errors
    means = {key: float(np.average([one[key] for one in valid], weights=pixels[pixels > 0])) for key in valid[0]}
    return means | {"pixels": int(pixels.sum())}


def wrap_baseline(method: Callable) -> Callable:
    """Wrap a function of x (1, 2, 1, h, w), such as those of BASELINES, as a method for compute_errors."""
    return lambda sample: method(sample["x"][None])


def wrap_network(model: Network, floor: float, coarsened: str | None = None, smooth: bool = True) -> Callable:
    """Wrap a network as a method for compute_errors.

    The flow is averaged with the flows of the neighbouring pairs, as in `fastds downscale`. If the network was trained
    above a higher floor than `floor`, `fastds downscale` is applied to the two input frames alone: weaker echo is
    interpolated.

    Args:
        model: network with a model card.
        floor: lower end in dBZ of the normalisation of the samples.
        coarsened: known coarsening operator of the input, to which results are back-projected; None if unknown.
        smooth: True if frames between input times minimise the squared error; False if they have the detail and the
            intensities of frames at input times, as in `fastds downscale` without --smooth.
    """
    low, high = model.card.floor_dbz, model.card.ceiling_dbz

    def method(sample: dict) -> Tensor:
        given: Any
        x, (before, after) = sample["x"][:, 0], sample["neighbours"]
        if low > floor:
            return _normalise(_refine_pair(model, fd.restore(x, floor, CEILING_DBZ), coarsened, smooth), floor)
        before, given, after = (
            None if pair is None else fd.prepare(fd.restore(pair, floor, CEILING_DBZ), low, high)
            for pair in (before, x, after)
        )
        flow = smooth_pair_flow(before, given, after)
        y = run_network(model, given[None, :, None], flow[None], before, after)
        if coarsened is not None:
            back_project(y[0, :, 0], given, flow, torch.ones_like(given).bool(), coarsened, high - low)
        if not smooth:
            y[0, 1, 0] = match_end_frames(y[0, :, 0])
        return _normalise(fd.restore(y, low, high), floor)

    return method


def run_network(
    model: Network, x: Tensor, flow: Tensor, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """Run a network on a pair of frames, with the flow and the neighbouring frames if the network takes them.

    Args:
        model: network.
        x: (1, 2, 1, h, w), normalised.
        flow: (1, 1, 2, 2, h, w), optical flow of x.
        before: (2, h, w), normalised, the previous pair, which ends with the first frame of x; None: not known.
        after: (2, h, w), normalised, the next pair, which begins with the last frame of x; None: not known.

    Returns:
        (1, 3, 1, H, W), normalised.
    """
    options = {"flow": flow} if needs_flow(model) else {}
    if needs_context(model):
        unknown = torch.full_like(x[0, 0, 0], torch.nan)
        first, last = unknown if before is None else before[0], unknown if after is None else after[1]
        options["context"] = torch.stack([first, last])[None, :, None]
    return model(x, **options)


def _normalise(z: Tensor, floor: float) -> Tensor:
    return (z.clamp(floor, CEILING_DBZ) - floor) / (CEILING_DBZ - floor)


def _refine_pair(model: Network, frames: Tensor, coarsened: str | None, smooth: bool) -> Tensor:
    """Make fine frames (1, 3, 1, H, W) in dBZ from two coarse ones (2, h, w) in dBZ, as `fastds downscale` does."""
    whole = slice(0, frames.shape[1]), slice(0, frames.shape[2])
    options = {"floor": model.card.floor_dbz, "ceiling": model.card.ceiling_dbz, "no_echo": NO_ECHO_DBZ}
    options["steady"] = not smooth
    network = functools.partial(run_network, model)
    refiner = FrameRefiner(network, scale=2, tiles=[Tile(whole, whole)], coarsened=coarsened, **options)
    return torch.from_numpy(np.stack(list(refiner.refine(frames.numpy()))))[None, :, None]


@dataclasses.dataclass
class Row:
    """Errors of all methods on one test block.

    Attributes:
        samples: method -> radar_errors of each sample.
        blocks: number of the block of time of each sample.
    """

    samples: dict[str, list[dict[str, float]]]
    blocks: list[int]

    @functools.cached_property
    def errors(self) -> dict[str, dict[str, float]]:
        """Errors over all samples, by method."""
        return {name: pool_errors(found) for name, found in self.samples.items()}

    def squares(self, method: str) -> np.ndarray:
        """Return the sum of the squared errors of each sample, 0 for a sample without valid pixels."""
        found = [one["mse_total"] * one["pixels"] if one["pixels"] else 0.0 for one in self.samples[method]]
        return np.array(found)


def compute_ratio(rows: Sequence[Row], baseline: str) -> Estimate:
    """Compute the ratio of the squared error of the model to that of a baseline.

    The estimate is a mean over rows with a 95 % interval by resampling blocks of time; a draw averages the rows that
    have samples in it.

    Args:
        rows: errors of the test blocks.
        baseline: name of the baseline.
    """
    ends = np.cumsum([len(row.blocks) for row in rows])[:-1]
    model, other = (np.concatenate([row.squares(name) for row in rows]) for name in ("model", baseline))

    def mean_ratio(weights: np.ndarray) -> np.ndarray:
        sums = [[part.sum(1) for part in np.split(weights * squares, ends, axis=1)] for squares in (model, other)]
        with np.errstate(invalid="ignore"):
            ratios = np.array(sums[0]) / np.array(sums[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # some draws have no sample
            return np.nanmean(ratios, 0)

    return Estimate.from_statistic(mean_ratio, make_block_labels(row.blocks for row in rows))


def summarize(results: dict) -> dict:
    """Summarize results for a model card.

    Returns:
        A dictionary. A key is "FILE, floor F dBZ", followed by ", MODE" if the input is not coarsened by "dbz". A value
            has the scores mse_total, mse_t2 and mse_t13 of the model, and mse_total of the baselines.
    """
    out = {}
    for (file, floor, mode), found in results.items():
        row = found.errors
        scores = {key: round(row["model"][key], 4) for key in ("mse_total", "mse_t2", "mse_t13")}
        scores |= {f"mse_total_{name}": round(row[name]["mse_total"], 4) for name in BASELINES}
        out[f"{file}, floor {floor:g} dBZ" + (f", {mode}" if mode != "dbz" else "")] = scores
    return out


def publish(weights: str | os.PathLike, target: str | os.PathLike, data: str, card: dict, floors: list[float]) -> None:
    """Score a trained network on the test blocks and save it with the scores in its model card.

    Args:
        weights: safetensors file of the training.
        target: file to write.
        data: folder with the radar files.
        card: fields of the model card that are replaced.
        floors: see StudyConfig.
    """
    network: Network = models.load(weights)
    for key, value in card.items():
        setattr(network.card, key, value)
    network.card.metrics["test"] = summarize(print_errors(data, str(weights), floors))
    models.save(network, target)


@dataclasses.dataclass
class StudyConfig:
    """Errors of a model and of baselines on every test block.

    Args:
        data: folder with the radar files.
        model: name of a shipped model or path of a safetensors file.
        floors: floors in dBZ above which errors count; default 15 and 0.
        files: names of files of TEST_BLOCKS; default all.
        modes: coarsening operators of the input, see fastds.data.coarsen.
        known_coarsening: declare the coarsening operator to the network, as `fastds downscale --coarsened` does.
        smooth: frames between input times minimise the squared error, as in `fastds downscale --smooth`.
        block: length of the blocks of time that the bootstrap draws.
        members: number of members of an ensemble whose scores are also printed; less than 2: no ensemble.
        threads: number of threads of torch; None leaves the number unchanged.
        report: HTML page for the table; None writes none.
        leaderboard: file of leaderboard rows (see docs/models/leaderboard.md) to which ratios to advection's error are
            added; None adds none.
    """

    data: Files
    model: str = "fczsm-small"
    floors: list[float] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    modes: list[str] = dataclasses.field(default_factory=lambda: list(COARSENING_MODES))
    known_coarsening: bool = False
    smooth: bool = False
    block: str = "30min"
    members: int = 0
    threads: int | None = None
    report: str | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study radar` into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study radar", "Errors on the test radars.", {})


def study(config: StudyConfig) -> None:
    """Run `fastds study radar`: print the table and write config.report."""
    if config.report is not None:
        check_report(config.report)
    with inference_context(None, resolve_execution(None, config.threads)):
        seconds = parse_duration(config.block, "block")
        c = config
        results = print_errors(c.data.path, c.model, c.floors, c.files, c.modes, c.known_coarsening, c.smooth, seconds)
        drawn = [] if config.members < 2 else [print_member_table(config)]
    if config.report is not None:
        write_study("Errors on the test radars", config, [_tabulate_errors(results), *drawn])
    if config.leaderboard is not None:
        write_rows(config, models.load_card(config.model).name, make_leaderboard_rows(results))


def print_member_table(config: StudyConfig) -> Table:
    """Print the scores of the ensemble for every test block and coarsening operator, and return them as a table."""
    model: Network = models.load(config.model).eval()
    found: dict[Any, Any] = {}
    heads = "block", "coarsened", "times", *SCORES
    made = make_score_table(f"{config.members} members, above {model.card.floor_dbz:g} dBZ where echo is near", heads)

    def add(*cells: str) -> None:
        made.add_row(*cells)
        print(f"| {' | '.join(cells)} |", flush=True)

    print(f"\n{made.title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for mode, file in itertools.product(config.modes, config.files or TEST_BLOCKS):
        block = read_test_block(config.data.path, file, model.card.floor_dbz, mode=mode)
        for times, scores in score_members(block.samples, model, config.members).items():
            add(file, mode, times, *map(format_number, scores))
            found.setdefault(times, []).append(scores)
    for times, rows in found.items():
        add("mean", "", times, *map(format_number, np.mean(rows, 0)))
    return made


def make_leaderboard_rows(results: dict) -> list[dict]:
    """Make leaderboard rows of the squared error over that of advection.

    There is one row for each file. For each floor and coarsening operator, there is also the mean over the files with
    an interval by resampling files.
    """
    rows: list[Any] = []
    means: dict[Any, Any] = {}
    for (file, floor, mode), row in results.items():
        found = compute_ratio([row], "advection")
        score = f"squared error above {floor:g} dBZ over advection's, coarsened by {mode}"
        rows.append({"data": file, "score": score, "value": found})
        means.setdefault(score, []).append(found.mean)
    for score, found in means.items():
        labels = np.arange(len(found)).reshape(-1, 1)
        mean = Estimate.from_samples(np.array(found), labels)
        rows.append({"data": "mean of the test radars", "score": score, "value": mean, "cases": len(found)})
    return [{"task": "radar", "better": "lower"} | row for row in rows]


def _tabulate_errors(results: dict) -> Table:
    """Tabulate the errors, one section for each file, floor and coarsening operator."""
    columns = "mse_total", "mse_t2", "mse_t13"
    heads = "block", "floor dBZ", "coarsened", "method", *(f"{name} dBZ²" for name in columns), "of advection"
    rich = make_score_table("Squared errors", heads)
    for (file, floor, mode), row in results.items():
        for number, (method, errors) in enumerate(row.errors.items(), 1):
            cells = [*(format_number(errors[name]) for name in columns)]
            cells.append(compute_ratio([row], "advection").format() if method == "model" else "")
            rich.add_row(file, f"{floor:g}", mode, method, *cells, end_section=number == len(row.errors))
    return rich


def print_errors(
    data: str,
    model: str = "fczsm-small",
    floors: Sequence[float] = (),
    files: Sequence[str] = (),
    modes: Sequence[str] = COARSENING_MODES,
    known_coarsening: bool = False,
    smooth: bool = False,
    seconds: float = 1800.0,
) -> dict[tuple[str, float, str], Row]:
    """Print the errors of the model and of the baselines on every test block.

    Args:
        data: folder with the radar files.
        model: see StudyConfig.
        floors: see StudyConfig.
        files: see StudyConfig.
        modes: see StudyConfig.
        known_coarsening: see StudyConfig.
        smooth: see StudyConfig.
        seconds: length of a block of time.

    Returns:
        {(file, floor, mode): Row}.
    """
    network = models.load(model).eval()
    results = {}
    print("| block | floor | coarsened | " + " | ".join(BASELINES) + f" | {model} | of trilinear | of advection |")
    print("|---" * (len(BASELINES) + 6) + "|")
    for floor, mode in itertools.product(floors or metrics.EVALUATION_FLOORS, modes):
        for file in files or TEST_BLOCKS:
            block = read_test_block(data, file, floor, mode=mode, seconds=seconds)
            methods = {name: wrap_baseline(method) for name, method in BASELINES.items()}
            methods["model"] = wrap_network(network, floor, mode if known_coarsening else None, smooth)
            row = Row({name: compute_sample_errors(block, method) for name, method in methods.items()}, block.blocks)
            results[file, floor, mode] = row
            _print_row(file, floor, mode, [f"{found['mse_total']:.3f}" for found in row.errors.values()], [row])
        rows = [row for (_, *case), row in results.items() if case == [floor, mode]]
        if len(rows) > 1:
            _print_row("mean", floor, mode, [""] * (len(BASELINES) + 1), rows)
    return results


def _print_row(block: str, floor: float, mode: str, totals: list[str], rows: list[Row]) -> None:
    ratios = [compute_ratio(rows, name).format() for name in ("trilinear", "advection")]
    print(f"| {' | '.join([block, f'{floor:g}', mode, *totals, *ratios])} |", flush=True)
