# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of ops: the same bits for any number of threads."""

import torch


def assert_same_bits(run, threads=(1, 3)):
    """run() -> tensors gives the same bits on every number of threads."""
    before, seen = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            seen.append(list(run()))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
