# SPDX-License-Identifier: Apache-2.0
"""Errors of a method on every test sample."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import Tensor

from fastds import data as fd
from fastds import metrics, models
from fastds.inference.execution import inference_context, resolve_execution
from fastds.metrics.errors import CEILING_DBZ
from fastds.studies.common.quiet import suppress_warnings
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.fczsm.methods import METHODS
from fastds.tasks.radar.methods import BASELINES

FLOOR_DBZ = 15.0
SCORES = ("mse_total", "mse_t2", "mse_t13", "ssim")
# Function from a sample to (3, H, W) in dBZ.
Predict = Callable[[dict[str, Tensor]], Tensor]


def score(predict: Predict, blocks: list[EvaluationBlock]) -> dict[str, list[float]]:
    """Compute the scores of radar_errors, score -> one number for each sample of all blocks."""
    found = [
        metrics.radar_errors(predict(s), _dbz(s["y"])[:, 0], s["valid"][:, 0], FLOOR_DBZ)
        for block in blocks
        for s in block.samples
    ]
    return {name: [row[name] for row in found] for name in SCORES}


def call_with_prediction(
    name: str, weights: str | os.PathLike | None, threads: int | None, device: str, use: Callable[[Predict], object]
) -> object:
    """Call use(predict), where predict makes the fields of a method, and return its result.

    Args:
        name: name of the method.
        weights: weights of the network; None for methods without one.
        threads: number of threads of torch; None leaves the number unchanged.
        device: device of the network.
        use: function of predict.
    """
    if METHODS[name].preset is None:
        with inference_context(None, resolve_execution(None, threads)):
            return use(lambda sample: _dbz(BASELINES[name](sample["x"][None, :, :1], 2)[0, :, 0]))
    model = suppress_warnings(lambda: models.load(weights))
    settings = resolve_execution(model, threads, "fp32", device)

    def predict(sample: dict[str, Tensor]) -> Tensor:
        given = {"x": sample["x"][:, : model.config["in_channels"]]}
        if METHODS[name].static:
            given["static"] = sample["static"]
        y = model(**{key: z[None].to(settings.device) for key, z in given.items()})
        return _dbz(y[0, :, 0].float().cpu())

    with inference_context(model, settings):
        return use(predict)


def _dbz(x: Tensor) -> Tensor:
    return fd.restore(x, FLOOR_DBZ, CEILING_DBZ)
