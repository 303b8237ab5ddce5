# SPDX-License-Identifier: Apache-2.0
"""Options, files and command lines of short trainings, and trainings that a signal ends."""

import numpy as np
import torch
import xarray as xr
import yaml

from fastds import data, models

SAMPLES = {"batch_size": 2, "epoch_samples": 8, "validation_samples": 4}  # epochs of 4 steps
CROPS = {"minimum_echo": 0.0, "scales": [1], "intervals": [1], **SAMPLES}
RUN = {"max_steps": 8, "ema_decay": 0.9, "progress": False, "threads": 1}
OPTIONS = {
    "radar": {
        "data": {"crop": 16, "workers": 0, **CROPS},
        "model": {"name": "fczsm-small", "options": {
            "num_features": 8, "offset_groups": 1, "extractor_blocks": 1, "reconstruction_blocks": 1,
            "alignment": "plain",
        }},
    },
    "nowcast": {
        "data": {"known": 3, "future": 3, "crop": 24, "halo": 16, **CROPS},
        "model": {"name": "nowcast-small", "options": {"network": "MSRNN", "hidden": 4}},
    },
    "fields": {
        "data": {
            "variables": ["r"], "train": [0, 55], "validation": [60, 90], "crop": 12, "halo": 1, "queries": 50,
            "scales": [1.5, 2.5], "batch_size": 2, "epoch_samples": 8, "test_scales": [2.0],
        },
        "model": {"options": {
            "encoder_options": {"channels": 8, "blocks": 1}, "dpfa_count": 1,
            "decoder_options": {"width": 16, "heads": 2, "key_width": 4},
        }},
    },
    "humidity": {
        "data": {"steps": 2, "crop": 8, **SAMPLES},
        "model": {"name": "wgan-gp-small", "options": {
            "width": 8, "post_width": 8, "pre_blocks": 1, "post_blocks": 1, "reduction": 4, "scale": 2,
        }},
        "critic": {"options": {"width": 4, "down_blocks": 1, "post_blocks": 0, "reduction": 2}},
        "optimiser": {"warmup_epochs": 1},
    },
}  # fmt: skip


def make_files(folder):
    event = data.synthetic_event(seed=3, frames=20, shape=(72, 72), cadence_minutes=10.0)[["reflectivity"]]
    data.save_dataset(event, folder / "radar.nc")
    rows, columns = np.arange(40.0)[:, None], np.arange(90.0)
    waves = np.stack([np.sin(1.1 * rows + 0.3 * t) * np.cos(0.9 * columns - t) for t in range(4)])
    attrs = {"standard_name": "relative_humidity", "units": "%"}
    humidity = xr.Dataset({"r": (("time", "latitude", "longitude"), 50 + 30 * waves, attrs)})
    humidity.to_netcdf(folder / "grid.nc", engine="h5netcdf")
    return folder


def arguments(files, task, output, **changes):
    """Return the command line of a short training."""
    path = files / ("radar.nc" if task in ("radar", "nowcast") else "grid.nc")
    options = OPTIONS[task] | RUN | changes | {"output": str(output)}
    options["data"] = options["data"] | {"path": str(path)}
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(options))
    return [task, "--config", str(config)]


SIGNALLED = """
import os, sys
from fastds.cli import main
from fastds.training.modules import BaseLightningModule
number, step, hook = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
before = getattr(BaseLightningModule, hook)
def signalled(self, *arguments):
    if self.steps_done() == step:
        os.kill(os.getpid(), number)
    return before(self, *arguments)
setattr(BaseLightningModule, hook, signalled)
sys.exit(main(["train", *sys.argv[1:]]))
"""


def signalled(command, number, step, hook="on_train_batch_start"):
    """Run `fastds train` in a process that gets a signal when a hook is called after `step` steps."""
    from tests.support import forked  # here, as tests.kills imports this file as a part of the package tests

    return forked.run(SIGNALLED, int(number), step, hook, *command)


def same_weights(a, b, name="last.safetensors"):
    a, b = (models.load(folder / name).state_dict() for folder in (a, b))
    return all(torch.equal(value, b[key]) for key, value in a.items())
