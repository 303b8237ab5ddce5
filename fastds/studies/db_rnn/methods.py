# SPDX-License-Identifier: Apache-2.0
"""Methods of the DB-RNN paper: networks, published ranking, and training configurations."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from fastds.studies.common.budget import PAPER
from fastds.tasks.nowcast.config import ABLATIONS, DataConfig, LossConfig, ModelConfig, TrainingConfig, parse_arguments
from fastds.training.command import find_configurations

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
_SMALL = {"simvp": {"spatial": 16, "temporal": 64}, "preciplstm": {"cell_options": {"window": 6}}}
_VALIDATIONS, VALIDATED = 8, 16  # validations of the training of a small network, and samples of each
EPOCHS = 50  # epochs over which the loss of DB networks changes


def select_preset(name: str, ablated: str) -> tuple[str, str]:
    """Return the preset of a method's network and its cell; ablated: cell of the ablation, a key of CELLS."""
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
    width = {} if METHODS[name].kind == "simvp" else {"hidden": _SMALL_WIDTH}
    return width | _SMALL.get("simvp" if METHODS[name].kind == "simvp" else cell, {})


def load_paper_config(name: str, ablated: str, path: str) -> TrainingConfig:
    """Load the shipped training configuration of a method, which follows the paper.

    A network without a configuration of its own, such as a staged network of another cell, has the configuration of the
    same kind with ConvLSTM cells.

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

    With the budget "paper" it is the one of load_paper_config, except for data and steps; DB networks are trained for
    twice the steps.

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
