# SPDX-License-Identifier: Apache-2.0
"""Tests of the default number of threads under a CPU quota of a cgroup."""

import os

import pytest
import torch

from fastds.ops.core import cpu_quota


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "3:cpuset:/\n0::/../..\n", "sys/fs/cgroup/cpu.max": "damaged"}, None),
    ],
    ids=["no file", "no limit file", "max", "version 2", "parent group", "version 1", "damaged"],
)
def test_read_cpu_quota(tmp_path, files, expected):
    write(tmp_path, files)
    assert cpu_quota.read_cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "threads", "environment", "expected"),
    [
        (1.5, 8, {}, 2),
        (0.2, 8, {}, 1),
        (8.0, 8, {}, 8),
        (None, 8, {}, 8),
        (1.0, 3, {}, 3),  # set by the user
        (1.0, 8, {"OMP_NUM_THREADS": "8"}, 8),
    ],
)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_limit_default_threads(monkeypatch, quota, threads, environment, expected):
    chosen = [threads]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpu_quota, "read_cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    cpu_quota.limit_default_threads()
    assert chosen[-1] == expected
