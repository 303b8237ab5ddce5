# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds train` in two gloo processes that share each batch."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tests.support import training_runs

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import models
from fastds.training.command import main


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("task", ["radar", "nowcast", "fields"])
def test_two_processes_get_the_weights_of_one(task, files, tmp_path, monkeypatch):
    """Gradients are means over both processes, so the weights are equal up to the order of sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = {"max_steps": 3, "warmup_steps": 0, "ema_decay": 0.0}  # steps that are large compared with rounding
    if task == "nowcast":  # sums of pixels; "rain" is a ratio of sums, which each process takes of its samples
        run["loss"] = {"kind": "db-rnn"}
    one, two = (training_runs.arguments(files, task, tmp_path / n, devices=int(n), **run) for n in "12")
    assert main(one) == 0
    # Lightning starts the second process with the command line of the first, so the test runs a separate command.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fastds", "train", *two], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (models.load(tmp_path / n / "last.safetensors").state_dict() for n in "12")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
