# SPDX-License-Identifier: Apache-2.0
"""Methods of the DB-RNN paper: networks, published results, and training configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastds.studies.common.config import PAPER
from fastds.tasks.nowcast.config import ABLATIONS, DataConfig, LossConfig, ModelConfig, TrainingConfig, parse_arguments
from fastds.training.command import find_configurations

RATES = ("0.5", "2", "5", "10", "30")  # mm/h
SCORES = tuple(f"{score} {rate}" for score in ("CSI", "HSS", "POD") for rate in RATES) + ("B-MSE", "B-MAE")
_HKO_SCORES = (*SCORES[:10], "B-MSE", "B-MAE")
_DWD_SCORES = (*(f"{score} {rate}" for score in ("CSI", "HSS", "POD") for rate in RATES[:3]), "B-MSE", "B-MAE")

_NONE = (None,) * 5
# Tables III (MS, DB), VI (staged) and VII (other networks).
_HKO_7: dict[str, tuple[float | None, ...]] = {
    "MS-ConvLSTM": (0.668, 0.615, 0.519, 0.381, 0.201, 0.785, 0.748, 0.669, 0.531, 0.309, 268.8, 971.7),
    "DB-ConvLSTM": (0.679, 0.626, 0.536, 0.406, 0.243, 0.794, 0.757, 0.684, 0.557, 0.367, 252.0, 926.3),
    "MS-TrajGRU": (0.669, 0.617, 0.523, 0.390, 0.205, 0.787, 0.750, 0.674, 0.543, 0.316, 258.1, 961.5),
    "DB-TrajGRU": (0.683, 0.633, 0.543, 0.418, 0.233, 0.797, 0.763, 0.691, 0.574, 0.358, 238.7, 912.1),
    "MS-PredRNN": (0.677, 0.623, 0.534, 0.408, 0.236, 0.792, 0.754, 0.682, 0.558, 0.356, 247.4, 925.5),
    "DB-PredRNN": (0.687, 0.640, 0.557, 0.438, 0.272, 0.799, 0.768, 0.703, 0.594, 0.407, 237.4, 882.0),
    "MS-PredRNN++": (0.678, 0.628, 0.543, 0.418, 0.243, 0.793, 0.758, 0.690, 0.572, 0.367, 244.7, 913.6),
    "DB-PredRNN++": (0.686, 0.638, 0.553, 0.429, 0.260, 0.798, 0.766, 0.700, 0.583, 0.391, 241.4, 891.7),
    "MS-MIM": (0.676, 0.624, 0.536, 0.408, 0.233, 0.792, 0.755, 0.684, 0.560, 0.352, 250.2, 927.9),
    "DB-MIM": (0.684, 0.636, 0.553, 0.439, 0.282, 0.797, 0.764, 0.700, 0.595, 0.421, 241.5, 891.0),
    "MS-MotionRNN": (0.680, 0.629, 0.540, 0.411, 0.232, 0.794, 0.760, 0.688, 0.564, 0.353, 246.5, 918.0),
    "DB-MotionRNN": (0.692, 0.644, 0.559, 0.440, 0.270, 0.803, 0.771, 0.705, 0.596, 0.403, 226.6, 863.5),
    "MS-PrecipLSTM": (0.685, 0.637, 0.552, 0.430, 0.260, 0.798, 0.766, 0.698, 0.583, 0.385, 232.1, 884.2),
    "DB-PrecipLSTM": (0.691, 0.644, 0.562, 0.448, 0.285, 0.802, 0.771, 0.708, 0.604, 0.424, 230.7, 862.3),
    "MS-ConvLSTM-S": (0.671, None, 0.524, None, 0.214, *_NONE, 263.8, None),
    "MS-PredRNN-S": (0.680, None, 0.540, None, 0.246, *_NONE, 244.5, None),
    "SimVP": (0.585, None, 0.446, None, 0.161, *_NONE, None, None),
    "MS-LSTM": (0.675, None, 0.532, None, 0.200, *_NONE, None, None),
    "Earthformer": (0.549, None, 0.364, None, 0.035, *_NONE, None, None),
    "LPT-QPN": (0.602, None, 0.409, None, 0.092, *_NONE, None, None),
}
# Table IV.
_DWD_12: dict[str, tuple[float | None, ...]] = {
    "MS-ConvLSTM": (0.437, 0.275, 0.135, 0.592, 0.414, 0.225, 0.512, 0.326, 0.158, 159.7, 478.6),
    "DB-ConvLSTM": (0.459, 0.304, 0.151, 0.615, 0.453, 0.250, 0.547, 0.365, 0.177, 153.1, 461.9),
    "MS-TrajGRU": (0.416, 0.241, 0.104, 0.570, 0.371, 0.178, 0.478, 0.274, 0.116, 164.7, 492.2),
    "DB-TrajGRU": (0.451, 0.302, 0.175, 0.607, 0.451, 0.288, 0.535, 0.367, 0.212, 156.1, 468.6),
    "MS-PredRNN": (0.451, 0.271, 0.100, 0.607, 0.411, 0.171, 0.524, 0.306, 0.108, 149.7, 462.0),
    "DB-PredRNN": (0.459, 0.295, 0.133, 0.614, 0.442, 0.224, 0.535, 0.341, 0.150, 152.4, 455.3),
    "MS-PredRNN++": (0.456, 0.287, 0.117, 0.611, 0.430, 0.198, 0.532, 0.332, 0.129, 149.4, 457.4),
    "DB-PredRNN++": (0.466, 0.317, 0.160, 0.621, 0.468, 0.265, 0.550, 0.378, 0.185, 151.2, 451.6),
    "MS-MIM": (0.459, 0.286, 0.102, 0.614, 0.430, 0.175, 0.538, 0.328, 0.110, 149.3, 458.6),
    "DB-MIM": (0.467, 0.306, 0.156, 0.621, 0.453, 0.258, 0.552, 0.362, 0.180, 153.6, 453.7),
    "MS-MotionRNN": (0.464, 0.293, 0.127, 0.619, 0.437, 0.213, 0.548, 0.341, 0.143, 147.0, 459.6),
    "DB-MotionRNN": (0.466, 0.307, 0.158, 0.621, 0.457, 0.264, 0.546, 0.358, 0.179, 149.5, 451.6),
    "MS-PrecipLSTM": (0.462, 0.296, 0.147, 0.617, 0.439, 0.242, 0.541, 0.349, 0.171, 146.0, 455.2),
    "DB-PrecipLSTM": (0.476, 0.320, 0.174, 0.630, 0.471, 0.284, 0.571, 0.385, 0.208, 148.5, 446.9),
}
# Table VIII, of PrecipLSTM: CSI at 10 mm/h and B-MAE.
_ABLATION = {
    "MS": (0.430, 884.2),
    "DB-fixed": (0.439, 874.6),
    "DB-scheduled": (0.442, 870.5),
    "DB-gdl": (0.443, 868.1),
    "DB-discriminator-L": (0.448, 862.3),
}
PUBLISHED = {
    "hko-7": {name: dict(zip(_HKO_SCORES, row, strict=True)) for name, row in _HKO_7.items()}
    | {name: dict(zip(("CSI 10", "B-MAE"), row, strict=True)) for name, row in _ABLATION.items()},
    "dwd-12": {name: dict(zip(_DWD_SCORES, row, strict=True)) for name, row in _DWD_12.items()},
}
ABSENT = ("Earthformer", "LPT-QPN")  # networks of table VII that fastds does not have


class Complexity(NamedTuple):
    """A row of table V.

    Attributes:
        parameters: number of parameters in 1e6.
        multiply_adds: multiply-adds of 9 steps at 160 x 160 pixels in 1e9.
        memory: GB of memory.
        hours: hours of training.
    """

    parameters: float
    multiply_adds: float
    memory: float
    hours: float


COMPLEXITY = {
    "MS-ConvLSTM": Complexity(0.25, 25.2, 0.96, 1.12),
    "DB-ConvLSTM": Complexity(0.50, 50.3, 1.50, 4.74),
    "MS-PredRNN": Complexity(0.51, 51.0, 1.39, 4.08),
    "DB-PredRNN": Complexity(1.01, 102.0, 2.29, 15.40),
    "MS-MIM": Complexity(0.99, 80.2, 2.00, 4.74),
    "DB-MIM": Complexity(1.99, 160.4, 3.39, 18.83),
}


def get_published(name: str, data: str = "hko-7") -> Mapping[str, float | None]:
    """Return the published scores of a method on hko-7 or dwd-12; None for unpublished scores."""
    return dict.fromkeys(SCORES) | PUBLISHED[data].get(name, {})


CELLS = {
    "ConvLSTM": "convlstm", "TrajGRU": "trajgru", "PredRNN": "predrnn", "PredRNN++": "predrnn++", "MIM": "mim",
    "MotionRNN": "motionrnn", "PrecipLSTM": "preciplstm",
}  # fmt: skip


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        kind: "" (no training), "ms", "db", "staged" or "simvp".
        cell: name of the cell in fastds.models, or a key of CELLS; "" for the ablation, whose cell is an option.
        ablation: loss of DB networks, see LossConfig.
        discriminator: discriminator of DB networks, see LossConfig.
    """

    kind: str = ""
    cell: str = ""
    ablation: str = "fixed"
    discriminator: str | None = None


BASELINES = ("persistence", "extrapolation")
ABLATION = {
    "DB-fixed": Method("db", "", "fixed"),
    "DB-scheduled": Method("db", "", "scheduled"),
    "DB-gdl": Method("db", "", "gdl"),
    **{f"DB-discriminator-{variant}": Method("db", "", "adversarial", variant) for variant in "SML"},
}
# The rows of table VIII: the MS network of the same cell, and the DB networks.
ABLATION_ROWS = ("MS", *ABLATION)
METHODS = {
    **{name: Method() for name in BASELINES},
    **{f"MS-{name}": Method("ms", cell) for name, cell in CELLS.items()},
    **{f"DB-{name}": Method("db", cell, "adversarial") for name, cell in CELLS.items()},
    **{f"MS-{name}-S": Method("staged", cell) for name, cell in CELLS.items()},
    "SimVP": Method("simvp"),
    "MS-LSTM": Method("ms", "mk-lstm"),
    "PredRNN-V2": Method("ms", "predrnn-v2"),
    **ABLATION,
}
# Pairs (better, worse) in the ranking of the paper.
PAPER_RANKING = (
    *((f"DB-{name}", f"MS-{name}") for name in CELLS),
    *((f"MS-{name}-S", f"MS-{name}") for name in CELLS),
    *((f"DB-{name}", f"MS-{name}-S") for name in CELLS),
    *((f"DB-{name}", other) for name in CELLS for other in ("SimVP", "MS-LSTM", "PredRNN-V2", "extrapolation")),
    ("DB-scheduled", "DB-fixed"), ("DB-gdl", "DB-scheduled"), ("DB-discriminator-S", "DB-gdl"),
    ("DB-discriminator-M", "DB-discriminator-S"), ("DB-discriminator-L", "DB-discriminator-S"),
)  # fmt: skip
RANKED_SCORES = ("CSI 5", "CSI 10", "CSI 30", "B-MAE")
KNOWN = FUTURE = 5
CROP = 64  # side of training crops in pixels; the budget "paper" has its own
_SMALL_WIDTH = 8
_SMALL: dict[str, dict[str, Any]] = {
    "simvp": {"spatial": 16, "temporal": 64},
    "preciplstm": {"cell_options": {"window": 6}},
}
_VALIDATIONS, VALIDATED = 8, 16  # validations of the training of a small network, and samples of each
EPOCHS = 50  # epochs over which the loss of DB networks changes


def select_preset(name: str, ablated: str) -> tuple[str, str]:
    """Return the preset of the network of a method, and its cell.

    Args:
        name: the method.
        ablated: cell of the ablation, a key of CELLS.
    """
    method = METHODS[name]
    cell = method.cell or CELLS[ablated]
    names = {"ms": f"ms-{cell}", "db": f"db-{cell}", "staged": f"ms-{cell}-s", "simvp": "simvp"}
    return names[method.kind], cell


def make_network_options(name: str, ablated: str, budget: str) -> dict[str, Any]:
    """Return the network options that differ from the preset.

    Args:
        name: the method.
        ablated: cell of the ablation, a key of CELLS.
        budget: with "paper" there are none; otherwise the networks are small.
    """
    if budget == PAPER:
        return {}
    _, cell = select_preset(name, ablated)
    width: dict[str, Any] = {} if METHODS[name].kind == "simvp" else {"hidden": _SMALL_WIDTH}
    return width | _SMALL.get("simvp" if METHODS[name].kind == "simvp" else cell, {})


def load_paper_config(name: str, ablated: str, path: str) -> TrainingConfig:
    """Load the shipped training configuration of a method, which follows the paper.

    If there is no configuration for a network, the one with ConvLSTM cells is used: ms-convlstm-s for a staged network,
    otherwise ms-convlstm.

    Args:
        name: the method.
        ablated: cell of the ablation, a key of CELLS.
        path: path of the data.
    """
    method, (network, _) = METHODS[name], select_preset(name, ablated)
    shipped = "ms-lstm" if network == "ms-mk-lstm" else network
    if shipped not in find_configurations("nowcast"):
        shipped = "ms-convlstm-s" if method.kind == "staged" else "ms-convlstm"
    config = parse_arguments(["--config", shipped, "--data.path", path])
    if method.kind != "db":
        preset = config.model.name if shipped == "ms-lstm" else network
        return dataclasses.replace(config, model=dataclasses.replace(config.model, name=preset))
    terms, weights = ABLATIONS[method.ablation]
    discriminator = method.discriminator or (config.loss.discriminator if terms == "adversarial" else None)
    loss = dataclasses.replace(config.loss, terms=terms, weights=weights, discriminator=discriminator)
    return dataclasses.replace(config, loss=loss)


def make_training_config(
    name: str, ablated: str, budget: str, steps: int, data: DataConfig, z_r: list[float], start: str | None = None,
    **run: Any,
) -> TrainingConfig:  # fmt: skip
    """Make the training configuration of a method.

    With the budget "paper" it is the configuration of load_paper_config, except for data and steps. A DB network is
    then trained for 2 * `steps` steps.

    Args:
        name: the method.
        ablated: cell of the ablation, a key of CELLS.
        budget: budget of the study.
        steps: number of steps.
        data: samples.
        z_r: (a, b) of the Z-R relation.
        start: weights of a staged network's forecaster.
        run: further options of the training.
    """
    method = METHODS[name]
    stage = "deblurrer" if method.kind == "staged" else None
    if budget == PAPER:
        paper = load_paper_config(name, ablated, data.path)
        given = {key: getattr(data, key) for key in ("blocks", "var", "scales", "intervals")}
        return dataclasses.replace(
            paper,
            data=dataclasses.replace(paper.data, **given),
            loss=dataclasses.replace(paper.loss, z_r=z_r),
            model=dataclasses.replace(paper.model, start=start),
            stage=stage,
            max_steps=2 * steps if method.kind == "db" else steps,
            **run,
        )
    batch = 2
    data = dataclasses.replace(
        data,
        known=KNOWN,
        future=FUTURE,
        fewest=FUTURE,
        crop=CROP,
        batch_size=batch,
        epoch_samples=batch * max(1, -(-steps // _VALIDATIONS)),
        validation_samples=VALIDATED,
    )
    loss = LossConfig("db-rnn", *ABLATIONS[method.ablation], method.discriminator, EPOCHS, z_r=z_r)
    model = ModelConfig(select_preset(name, ablated)[0], make_network_options(name, ablated, budget), start=start)
    return TrainingConfig(
        data, loss, model, stage, max_steps=steps, learning_rate=2e-3, warmup_steps=min(40, steps // 10 + 1),
        ema_decay=0.98, **run,
    )  # fmt: skip
