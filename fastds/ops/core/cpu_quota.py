# SPDX-License-Identifier: Apache-2.0
"""Default number of threads in a container or batch job whose CPU time is limited by a cgroup.

torch starts as many threads as the process may use cores. If a cgroup limits the process to the time of fewer cores,
the operating system stops all threads for a part of each period.
"""

import math
import os
from pathlib import Path

import torch

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the number of cores whose time the cgroups of this process allow, or None without a limit.

    Args:
        root: folder that holds proc/self/cgroup and sys/fs/cgroup.

    Returns:
        the smallest limit of the cgroup of this process and of the groups that contain it, versions 1 and 2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            folders, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _read_limit
        elif "cpu" in controllers.split(","):
            folders, read = (f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"), _read_limit_of_version_1
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for folder in folders:
            limits += [read(root / folder / "/".join(parts[:depth])) for depth in range(len(parts) + 1)]
    return min((limit for limit in limits if limit is not None), default=None)


def _read_limit(folder: Path) -> float | None:
    """Return the limit of a cgroup of version 2: the file cpu.max holds "QUOTA PERIOD" or "max PERIOD", in us."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_limit_of_version_1(folder: Path) -> float | None:
    """Return the limit of a cgroup of version 1; a quota of -1 means no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def limit_default_threads() -> None:
    """Set the number of threads of torch to the CPU quota, rounded up, if it has its default and the quota is smaller.

    The number has its default if neither an environment variable nor torch.set_num_threads has set another one.
    """
    if any(os.environ.get(name) for name in _VARIABLES) or not hasattr(os, "sched_getaffinity"):
        return
    threads, allowed = torch.get_num_threads(), len(os.sched_getaffinity(0))
    quota = read_cpu_quota()
    if quota is not None and threads in (allowed, os.cpu_count()) and quota < threads:
        torch.set_num_threads(max(1, math.ceil(quota)))
