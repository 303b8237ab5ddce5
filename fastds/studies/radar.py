# SPDX-License-Identifier: Apache-2.0
"""The errors of a model on the test blocks of radar files: `fastds study radar --data.path FOLDER`."""

import dataclasses
import functools
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from fastds import data as fd
from fastds import metrics, models
from fastds.data.grid.variables import duration_seconds
from fastds.data.radar.preparation import COARSENING_MODES
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.tables import format_number, make_score_table
from fastds.inference.tiling import Tile
from fastds.metrics.errors import CEILING_DBZ
from fastds.report import check_report
from fastds.studies.command import Files
from fastds.studies.common.bootstrap import Estimate, labels_of
from fastds.studies.radar_members import SCORES, member_scores
from fastds.studies.report import write_rows, write_study
from fastds.tasks.radar.back_projection import back_project
from fastds.tasks.radar.methods import BASELINES, needs_flow
from fastds.tasks.radar.motion import smooth_pair_flow
from fastds.tasks.radar.refinement import FrameRefiner
from fastds.tasks.radar.steady import match_end_frames
from fastds.training.command import read_command_line

# File: first frame, end, every how many intervals a triple starts. FMI and KNMI: later frames than the training blocks
# of fastds/tasks/radar/configs/fczsm-small.yaml. The other files appear in no training configuration; that of
# 2018-05-14 shows the region of two training files on the day between them.
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
MARGIN = 2  # fine pixels next to missing ones or to the edge that do not count


@dataclasses.dataclass
class Block:
    """Samples of one test block.

    Attributes:
        name: of its file.
        floor: dBZ above which x and y are normalised.
        samples: dicts of x (2, 1, h, w), y and valid (3, 1, H, W), and beside: the pairs (2, h, w) before and behind x,
            None where the block has none.
        blocks: the number of the block of time of each sample.
    """

    name: str
    floor: float
    samples: list[dict]
    blocks: list[int]


def test_block(
    folder: str | os.PathLike,
    file: str,
    floor: float = 15.0,
    interval: int = 1,
    scale: int = 1,
    mode: str = "dbz",
    seconds: float = 1800.0,
) -> Block:
    """Read the test block of a file; interval and scale make coarser cadences and grids out of it, mode says how the
    input is coarsened (see EvaluationTriples), seconds how long blocks of time are.
    """
    start, stop, every = TEST_BLOCKS[file]
    source = fd.TimeBlock(str(pathlib.Path(folder) / file), start, stop)
    triples = fd.EvaluationTriples(source, interval=interval, scale=scale, floor=floor, mode=mode)
    places = {tuple(index): number for number, index in enumerate(triples.index)}
    chosen = triples.store.triples(interval, every if interval == 1 else 1)
    samples = [dict(triples[places[tuple(index)]]) for index in chosen]
    for sample, index in zip(samples, chosen, strict=True):
        length = index[2] - index[0]
        found = (places.get(tuple(index + step)) for step in (-length, length))
        sample["beside"] = [None if number is None else triples[number]["x"][:, 0] for number in found]
        sample["valid"] = metrics.interior(sample["valid"].all(dim=0, keepdim=True), MARGIN).expand_as(sample["y"])
    starts = triples.store.seconds[chosen[:, 0]]
    return Block(file, floor, samples, [int(start // seconds) for start in starts])


def errors_of_samples(block: Block, method: Callable) -> list[dict[str, float]]:
    """radar_errors of method(sample) -> (1, 3, 1, H, W), fields normalised above the block's floor, of each sample."""
    found = []
    with torch.inference_mode():
        for sample in block.samples:
            fields = method(sample)[0, :, 0], sample["y"][:, 0]
            p, t = (fd.restore(z, block.floor, CEILING_DBZ) for z in fields)
            found.append(metrics.radar_errors(p, t, sample["valid"][:, 0], block.floor, with_ssim=False))
    return found


def errors(block: Block, method: Callable) -> dict[str, float]:
    """radar_errors of a method over all samples, see errors_of_samples."""
    return pooled(errors_of_samples(block, method))


def pooled(found: list[dict[str, float]]) -> dict[str, float]:
    """radar_errors of all samples together from those of each."""
    pixels = np.array([one["pixels"] for one in found])
    if not pixels.any():
        return found[0]
    there = [one for one in found if one["pixels"]]  # errors of the others are NaN
    means = {key: float(np.average([one[key] for one in there], weights=pixels[pixels > 0])) for key in there[0]}
    return means | {"pixels": int(pixels.sum())}


def plainly(method: Callable) -> Callable:
    """A function of x (1, 2, 1, h, w) in [0, 1], such as those of BASELINES, as a method for errors()."""
    return lambda sample: method(sample["x"][None])


def as_method(model: torch.nn.Module, floor: float, coarsened: str | None = None, smooth: bool = True) -> Callable:
    """The model as a method for errors(). coarsened: how its input averages finer cells, where that is told, see
    fastds.tasks.radar.back_projection. smooth: fields between input times are those of least squared error; else they
    have the detail and the intensities of those at input times, as `fastds downscale` makes them without --smooth.

    The flow is that of `fastds downscale`, which the pairs beside make steadier. A model trained above 15 dBZ knows
        nothing of weaker echo: where errors above a lower floor are asked for, the fields are those of `fastds
        downscale` of the two fields alone, which interpolates weaker echo; no cell is known to be dry.
    """
    low, high = model.card.floor_dbz, model.card.ceiling_dbz

    def method(sample: dict) -> Tensor:
        x, (before, behind) = sample["x"][:, 0], sample["beside"]
        if low > floor:
            return _scaled(_refined(model, fd.restore(x, floor, CEILING_DBZ), coarsened, smooth), floor)
        before, given, behind = (
            None if pair is None else fd.prepare(fd.restore(pair, floor, CEILING_DBZ), low, high)
            for pair in (before, x, behind)
        )
        flow = smooth_pair_flow(before, given, behind)
        y = _network(model)(given[None, :, None], flow[None])
        if coarsened is not None:
            back_project(y[0, :, 0], given, flow, torch.ones_like(given).bool(), coarsened, high - low)
        if not smooth:
            y[0, 1, 0] = match_end_frames(y[0, :, 0])
        return _scaled(fd.restore(y, low, high), floor)

    return method


def _network(model: torch.nn.Module) -> Callable:
    """network(x, flow), whether the model reads the flow or not."""
    return lambda x, flow: model(x, flow=flow) if needs_flow(model) else model(x)


def _scaled(z: Tensor, floor: float) -> Tensor:
    return (z.clamp(floor, CEILING_DBZ) - floor) / (CEILING_DBZ - floor)


def _refined(model: torch.nn.Module, frames: Tensor, coarsened: str | None, smooth: bool) -> Tensor:
    """Fine frames (1, 3, 1, H, W) of two coarse ones (2, h, w) in dBZ, as `fastds downscale` makes them."""
    whole = tuple(slice(0, size) for size in frames.shape[1:])
    options = {"floor": model.card.floor_dbz, "ceiling": model.card.ceiling_dbz, "no_echo": NO_ECHO_DBZ}
    options["steady"] = not smooth
    refiner = FrameRefiner(_network(model), scale=2, tiles=[Tile(whole, whole)], coarsened=coarsened, **options)
    return torch.from_numpy(np.stack(list(refiner.refine(frames.numpy()))))[None, :, None]


@dataclasses.dataclass
class Row:
    """What was found on one test block.

    Attributes:
        samples: of each method radar_errors of each sample.
        blocks: the number of the block of time of each sample.
    """

    samples: dict[str, list[dict[str, float]]]
    blocks: list[int]

    @functools.cached_property
    def errors(self) -> dict[str, dict[str, float]]:
        """Of each method those of all samples together."""
        return {name: pooled(found) for name, found in self.samples.items()}

    def squares(self, method: str) -> np.ndarray:
        """The sum of the squared errors of each sample, 0 where no pixel counts."""
        found = [one["mse_total"] * one["pixels"] if one["pixels"] else 0.0 for one in self.samples[method]]
        return np.array(found)


def ratio(rows: Sequence[Row], baseline: str) -> Estimate:
    """The error of the model over that of a baseline, mean over the rows, with an interval by drawing blocks of time;
    a draw takes the mean of those rows that it has samples of."""
    ends = np.cumsum([len(row.blocks) for row in rows])[:-1]
    own, theirs = (np.concatenate([row.squares(name) for row in rows]) for name in ("model", baseline))

    def mean_ratio(weights: np.ndarray) -> np.ndarray:
        sums = [[part.sum(1) for part in np.split(weights * squares, ends, axis=1)] for squares in (own, theirs)]
        with np.errstate(invalid="ignore"):
            ratios = np.array(sums[0]) / np.array(sums[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any sample
            return np.nanmean(ratios, 0)

    return Estimate.by(mean_ratio, labels_of(row.blocks for row in rows))


def summary(results: dict) -> dict:
    """Scores for a model card: {"FILE, floor F dBZ": {"mse_total", "mse_t2", "mse_t13", and of the
    baselines mse_total}}; ", MODE" follows where the input is not coarsened as dbz.
    """
    out = {}
    for (file, floor, mode), found in results.items():
        row = found.errors
        scores = {key: round(row["model"][key], 4) for key in ("mse_total", "mse_t2", "mse_t13")}
        scores |= {f"mse_total_{name}": round(row[name]["mse_total"], 4) for name in BASELINES}
        out[f"{file}, floor {floor:g} dBZ" + (f", {mode}" if mode != "dbz" else "")] = scores
    return out


def publish(weights: str | os.PathLike, target: str | os.PathLike, data: str, card: dict, floors: list[float]) -> None:
    """Evaluate a trained file on the test blocks, write the scores and the fields of `card` into its card and
    save it as target.
    """
    network = models.load(weights)
    for key, value in card.items():
        setattr(network.card, key, value)
    network.card.metrics["test"] = summary(table(data, str(weights), floors))
    models.save(network, target)


@dataclasses.dataclass
class StudyConfig:
    """Errors of the model and the baselines on every test block.

    Args:
        data: the folder with the radar files.
        model: a shipped name or a safetensors file.
        floors: dBZ above which errors count; none: 15 and 0.
        files: of TEST_BLOCKS; none: all.
        modes: ways in which the input is coarsened, see fastds.data.coarsen.
        told: tell the network in which way, as `fastds downscale --coarsened` does.
        smooth: fields between input times are those of least squared error, as `fastds downscale --smooth` makes them.
        block: time that the bootstrap draws at once.
        members: of an ensemble whose scores are printed, too; 0: none.
        threads: of torch; None leaves them as they are.
        report: an HTML page to write with the table; None: none.
        leaderboard: a file of rows, see docs/models/leaderboard.md, that errors over advection's are added to; None:
            none.
    """

    data: Files
    model: str = "fczsm-small"
    floors: list[float] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    modes: list[str] = dataclasses.field(default_factory=lambda: list(COARSENING_MODES))
    told: bool = False
    smooth: bool = False
    block: str = "30min"
    members: int = 0
    threads: int | None = None
    report: str | None = None
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study radar`, into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study radar", "Errors on the test radars.", {})


def study(config: StudyConfig) -> None:
    """What `fastds study radar` does: prints the table, writes config.report."""
    if config.report is not None:
        check_report(config.report)
    with inference_context(None, resolve_execution(None, config.threads)):
        seconds = duration_seconds(config.block, "block")
        c = config
        results = table(c.data.path, c.model, c.floors, c.files, c.modes, c.told, c.smooth, seconds)
        drawn = [] if config.members < 2 else [member_table(config)]
    if config.report is not None:
        write_study("Errors on the test radars", config, [_score_table(results), *drawn])
    if config.leaderboard is not None:
        write_rows(config, models.load_card(config.model).name, leaderboard_rows(results))


def member_table(config: StudyConfig) -> Table:
    """Print the scores of the members of every test block and way of coarsening, and return them as a table."""
    model, found = models.load(config.model).eval(), {}
    heads = "block", "coarsened", "times", *SCORES
    made = make_score_table(f"{config.members} members, above {model.card.floor_dbz:g} dBZ where echo is near", heads)

    def add(*cells: str) -> None:
        made.add_row(*cells)
        print(f"| {' | '.join(cells)} |", flush=True)

    print(f"\n{made.title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for mode, file in itertools.product(config.modes, config.files or TEST_BLOCKS):
        block = test_block(config.data.path, file, model.card.floor_dbz, mode=mode)
        for times, scores in member_scores(block.samples, model, config.members).items():
            add(file, mode, times, *map(format_number, scores))
            found.setdefault(times, []).append(scores)
    for times, rows in found.items():
        add("mean", "", times, *map(format_number, np.mean(rows, 0)))
    return made


def leaderboard_rows(results: dict) -> list[dict]:
    """The error over advection's of every file, and its mean over the files of a floor and way of coarsening with an
    interval by drawing files."""
    rows, means = [], {}
    for (file, floor, mode), row in results.items():
        found = ratio([row], "advection")
        score = f"squared error above {floor:g} dBZ over advection's, coarsened by {mode}"
        rows.append({"data": file, "score": score, "value": found})
        means.setdefault(score, []).append(found.mean)
    for score, found in means.items():
        labels = np.arange(len(found)).reshape(-1, 1)
        mean = Estimate.of(np.array(found), labels)
        rows.append({"data": "mean of the test radars", "score": score, "value": mean, "cases": len(found)})
    return [{"task": "radar", "better": "lower"} | row for row in rows]


def _score_table(results: dict) -> Table:
    """The errors, a line for each file, floor and way of coarsening."""
    columns = "mse_total", "mse_t2", "mse_t13"
    heads = "block", "floor dBZ", "coarsened", "method", *(f"{name} dBZ²" for name in columns), "of advection"
    rich = make_score_table("Squared errors", heads)
    for (file, floor, mode), row in results.items():
        for number, (method, errors) in enumerate(row.errors.items(), 1):
            cells = [*(format_number(errors[name]) for name in columns)]
            cells.append(ratio([row], "advection").text() if method == "model" else "")
            rich.add_row(file, f"{floor:g}", mode, method, *cells, end_section=number == len(row.errors))
    return rich


def table(
    data: str,
    model: str = "fczsm-small",
    floors: Sequence[float] = (),
    files: Sequence[str] = (),
    modes: Sequence[str] = COARSENING_MODES,
    told: bool = False,
    smooth: bool = False,
    seconds: float = 1800.0,
) -> dict[tuple[str, float, str], Row]:
    """Print the errors of the model and the baselines on every test block; arguments as in StudyConfig, data: the
    folder, seconds: of a block of time.

    Returns: {(file, floor, mode): Row}.
    """
    network = models.load(model).eval()
    results = {}
    print("| block | floor | coarsened | " + " | ".join(BASELINES) + f" | {model} | of trilinear | of advection |")
    print("|---" * (len(BASELINES) + 6) + "|")
    for floor, mode in itertools.product(floors or metrics.EVALUATION_FLOORS, modes):
        for file in files or TEST_BLOCKS:
            block = test_block(data, file, floor, mode=mode, seconds=seconds)
            methods = {name: plainly(method) for name, method in BASELINES.items()}
            methods["model"] = as_method(network, floor, mode if told else None, smooth)
            row = Row({name: errors_of_samples(block, method) for name, method in methods.items()}, block.blocks)
            results[file, floor, mode] = row
            _print_row(file, floor, mode, [f"{found['mse_total']:.3f}" for found in row.errors.values()], [row])
        rows = [row for (_, *case), row in results.items() if case == [floor, mode]]
        if len(rows) > 1:
            _print_row("mean", floor, mode, [""] * (len(BASELINES) + 1), rows)
    return results


def _print_row(block: str, floor: float, mode: str, totals: list[str], rows: list[Row]) -> None:
    ratios = [ratio(rows, name).text() for name in ("trilinear", "advection")]
    print(f"| {' | '.join([block, f'{floor:g}', mode, *totals, *ratios])} |", flush=True)
