# SPDX-License-Identifier: Apache-2.0
"""Tests that two processes with half a batch each get the gradients of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import xarray as xr
from torch.nn.parallel import DistributedDataParallel

from fastds import models
from fastds.models.wgan_gp import CriticLoss, HumidityCritic
from fastds.training.command import main
from tests.support import forked


def problem():
    torch.manual_seed(4)
    critic = HumidityCritic(width=4, down_blocks=1, post_blocks=1, reduction=2).double()
    real, fake = (torch.randn(4, 2, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    return CriticLoss(critic), real, fake, torch.rand(4, dtype=torch.float64)


# Two worker processes. They exit without destructors: the destructor of a process group holds the GIL while it waits
# for a gloo thread, which may wait for the GIL.
RANKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tests.models.test_wgan_gp_distributed import rank_main
other = os.fork()
group = rank_main(int(not other), *sys.argv[2:])
os._exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) if other else 0)
"""


def rank_main(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loss, *samples = problem()
    wrapped = DistributedDataParallel(loss)
    real, fake, epsilon = (t[2 * rank : 2 * rank + 2] for t in samples)
    wrapped(real, fake, None, epsilon)[0].backward()
    torch.save({k: p.grad for k, p in loss.named_parameters()}, f"{folder}/{rank}.pt")
    return wrapped


needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)


@needs_gloo
def test_two_ranks_equal_one_process(tmp_path):
    done = forked.run(RANKS, Path(__file__).parents[2], tmp_path / "store", tmp_path)
    assert done.returncode == 0, done.stderr
    loss, real, fake, epsilon = problem()
    loss(real, fake, None, epsilon)[0].backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, parameter in loss.named_parameters():
        torch.testing.assert_close(
            ranks[0][name], parameter.grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert torch.equal(ranks[0][name], ranks[1][name]), name


def train(folder, devices, *arguments):
    """Train with `fastds train` for two epochs of two steps on a number of devices and return the weights."""
    command = ["humidity", f"--data.path={folder / 'rh.nc'}", "--data.steps=2", f"--devices={devices}"]
    command += ["--data.crop=8", "--data.batch-size=4", "--data.epoch-samples=8", "--data.validation-samples=4"]
    command += ["--optimiser.epochs=2", "--progress=false", "--threads=1", f"--output={folder / str(devices)}"]
    command += arguments
    if devices == 1:
        assert main(command) == 0
    else:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fastds", "train", *command]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    return models.load(folder / str(devices) / "last.safetensors").state_dict()


@needs_gloo
def test_command_on_two_processes(tmp_path):
    """Without noise, batch normalisation and penalty, the result does not depend on how samples are distributed."""
    pytest.importorskip("lightning", reason="training needs the train extra")
    field = 50 + 20 * np.random.default_rng(0).normal(size=(6, 24, 48))
    xr.Dataset({"r": (("time", "y", "x"), field)}).to_netcdf(tmp_path / "rh.nc", engine="h5netcdf")
    plain = ["--model=srcnn", "--model.options={scale: 2}", "--loss.penalty=0", "--optimiser.warmup-epochs=0"]
    plain += ["--critic.options={width: 4, down_blocks: 1, post_blocks: 0, reduction: 2}"]
    one, two = (train(tmp_path, devices, *plain) for devices in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
