# SPDX-License-Identifier: Apache-2.0
"""Check of ops: bitwise equal results for any number of threads."""

import torch


def assert_same_bits(run, threads=(1, 3)):
    """Check that run() returns bitwise equal tensors for every number of threads."""
    before, seen = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            seen.append(list(run()))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
