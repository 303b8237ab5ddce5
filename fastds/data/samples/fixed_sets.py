# SPDX-License-Identifier: Apache-2.0
"""Sets of fixed samples, drawn at random from all times of the files: what FC-ZSM was trained and tested on."""

from collections.abc import Sequence

import numpy as np

from fastds.data.samples.radar_triples import Draw, RadarTriples

_ATTEMPTS = 1000  # draws for each sample that is wanted: dry times are many


def draw_sets(samples: RadarTriples, counts: Sequence[int], seed: int = 0) -> list[list[Draw]]:
    """Draw sets of so many samples, disjoint, every one with samples.minimum_echo and samples.minimum_valid.

    Args:
        samples: what the draws are of: its sources, crop, scales, intervals, modes and weights.
        counts: the numbers of the sets, such as (6000, 0, 1000).
        seed: of the draw, which depends on nothing else.

    Returns: a list of draws for each number. No two are of the same frames, grid and place; fields that overlap, or lie
        a few minutes apart, may be in different sets.

    Raises: ValueError where the sources have too few such samples.

    Source: Chen, Qin and Dai 2022, "we randomly selected 7,000 sets of data, including 6,000 groups as the training
        dataset and 1,000 groups as the test dataset".
    """
    rng, found, wanted = np.random.default_rng((seed, 2)), {}, sum(counts)
    for _ in range(_ATTEMPTS * max(1, wanted)):
        if len(found) == wanted:
            break
        draw, z = samples.draw(rng, attempts=1)
        if samples.echo(z) >= samples.minimum_echo:
            found.setdefault(draw._replace(mode=""), draw)
    if len(found) < wanted:
        echo, valid = (f"{share:.0%}" for share in (samples.minimum_echo, samples.minimum_valid))
        raise ValueError(
            f"data.fixed_samples {list(counts)} are {wanted}, and {len(found)} different samples were found with "
            f"{echo} of echo (data.minimum_echo) and {valid} of valid pixels (data.minimum_valid)"
        )
    drawn, ends = list(found.values()), np.cumsum(counts)
    return [drawn[end - count : end] for end, count in zip(ends, counts, strict=True)]
