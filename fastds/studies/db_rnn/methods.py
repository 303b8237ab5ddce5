# SPDX-License-Identifier: Apache-2.0
"""The methods of the paper's tables, what it says of them, and how each is trained here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastds.studies.common.budget import PAPER
from fastds.tasks.nowcast.config import ABLATIONS, DataConfig, LossConfig, ModelConfig, TrainingConfig

CELLS = {
    "ConvLSTM": "convlstm", "TrajGRU": "trajgru", "PredRNN": "predrnn", "PredRNN++": "predrnn++", "MIM": "mim",
    "MotionRNN": "motionrnn", "PrecipLSTM": "preciplstm",
}  # fmt: skip
# HKO-7: CSI and HSS at 0.5, 2, 5, 10 and 30 mm/h, B-MSE, B-MAE; tables III (MS, DB), VI (staged) and VII (others).
_NONE = (None,) * 5
_PUBLISHED: dict[str, tuple[float | None, ...]] = {
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
    # Table VIII, of PrecipLSTM.
    "DB-fixed": (None, None, None, 0.439, None, *_NONE, None, 874.6),
    "DB-scheduled": (None, None, None, 0.442, None, *_NONE, None, 870.5),
    "DB-gdl": (None, None, None, 0.443, None, *_NONE, None, 868.1),
}
SCORES = tuple(f"{score} {rate}" for score in ("CSI", "HSS") for rate in ("0.5", "2", "5", "10", "30"))
SCORES += ("B-MSE", "B-MAE")


class Method(NamedTuple):
    """A row of the tables.

    Attributes: kind: "" without training, "ms", "db", "staged" or "simvp"; cell: of the networks, as CELLS or
    fastds.models name them, "" that of data for the ablation; ablation, discriminator: of the loss, see LossConfig.
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
# What the paper finds better, and than what.
ORDER = (
    *((f"DB-{name}", f"MS-{name}") for name in CELLS),
    *((f"MS-{name}-S", f"MS-{name}") for name in CELLS),
    *((f"DB-{name}", f"MS-{name}-S") for name in CELLS),
    *((f"DB-{name}", other) for name in CELLS for other in ("SimVP", "MS-LSTM", "PredRNN-V2", "extrapolation")),
    ("DB-scheduled", "DB-fixed"), ("DB-gdl", "DB-scheduled"), ("DB-discriminator-S", "DB-gdl"),
    ("DB-discriminator-M", "DB-discriminator-S"), ("DB-discriminator-L", "DB-discriminator-S"),
)  # fmt: skip
ORDERED = ("CSI 5", "CSI 10", "CSI 30", "B-MAE")
KNOWN = FUTURE = 5
CROP = 64  # pixels of a training sample, but with the paper's budget
_SMALL_WIDTH = 8
_SMALL = {"simvp": {"spatial": 16, "temporal": 64}, "preciplstm": {"cell_options": {"window": 6}}}
_VALIDATIONS, VALIDATED = 8, 16  # of a training in the small, and samples of each
EPOCHS = 50  # of DB networks, in which their loss changes
# 25 epochs of the windows of HKO-7's training days four by four; DB networks take twice as many.
PAPER_STEPS, _PASS = 60_900, 9744


def published(name: str) -> Mapping[str, float | None]:
    """What the paper prints of a method, by score."""
    return dict(zip(SCORES, _PUBLISHED.get(name, (None,) * len(SCORES)), strict=True))


def preset(name: str, ablated: str) -> tuple[str, str]:
    """Preset and cell of a method's network; ablated: the cell of the ablation, a name of CELLS."""
    method = METHODS[name]
    cell = method.cell or CELLS[ablated]
    names = {"ms": f"ms-{cell}", "db": f"db-{cell}", "staged": f"ms-{cell}-s", "simvp": "simvp"}
    return names[method.kind], cell


def network_options(name: str, ablated: str, budget: str) -> dict[str, Any]:
    """Arguments of the network beyond its preset's."""
    if budget == PAPER:
        return {}
    _, cell = preset(name, ablated)
    width = {} if METHODS[name].kind == "simvp" else {"hidden": _SMALL_WIDTH}
    return width | _SMALL.get("simvp" if METHODS[name].kind == "simvp" else cell, {})


def training_config(
    name: str, ablated: str, budget: str, steps: int, data: DataConfig, z_r: list[float], start: str | None = None,
    **run: Any,
) -> TrainingConfig:  # fmt: skip
    """The training of a method; data: where the samples are from. start: weights of a staged network's forecaster. run:
    further options of the training."""
    paper, method = budget == PAPER, METHODS[name]
    batch = 4 if paper else 2
    data = dataclasses.replace(
        data,
        known=KNOWN,
        future=FUTURE,
        fewest=FUTURE,
        crop=160 if paper else CROP,
        intervals=[1],
        batch_size=batch,
        epoch_samples=_PASS if paper else batch * max(1, -(-steps // _VALIDATIONS)),
        validation_samples=VALIDATED,
    )
    loss = LossConfig("db-rnn", *ABLATIONS[method.ablation], method.discriminator, EPOCHS, z_r=z_r)
    model = ModelConfig(preset(name, ablated)[0], network_options(name, ablated, budget), start=start)
    return TrainingConfig(
        data, loss, model, "deblurrer" if method.kind == "staged" else None,
        max_steps=2 * steps if paper and method.kind == "db" else steps,
        learning_rate=3e-4 if paper else 2e-3, warmup_steps=0 if paper else min(40, steps // 10 + 1),
        ema_decay=0.0 if paper else 0.98, **run,
    )  # fmt: skip
