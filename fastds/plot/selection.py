# SPDX-License-Identifier: Apache-2.0
"""Selection of times and lead times for pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_COLUMNS = 6
_ROUND_MINUTES = 5
_FEWEST = 3  # columns for which the last lead time is included at the cost of a longer step


def select_leads(leads: np.ndarray, most: int = MOST_COLUMNS) -> list[int]:
    """Select equally spaced lead times, if possible whole multiples of five minutes such as 15, 30, 45, 60.

    The last lead time is among them if this leaves at least three.

    Args:
        leads: (n,) lead times in seconds, equally spaced.
        most: maximum number of lead times.

    Returns:
        Indices.
    """
    count = len(leads)
    steps = [step for step in range(1, count + 1) if count // step <= most]
    even = []
    for step in steps:
        chosen = list(range(step - 1, count, step))
        if len(chosen) > 1 and not np.any(np.asarray(leads)[chosen] % (60 * _ROUND_MINUTES)):
            even.append(chosen)
    to_the_end = [chosen for chosen in even if chosen[-1] == count - 1 and len(chosen) >= min(_FEWEST, len(even[0]))]
    if even:
        return (to_the_end or even)[0]
    return list(range(steps[0] - 1, count, steps[0]))


def select_equally(count: int, most: int = MOST_COLUMNS) -> list[int]:
    """Select equally spaced indices from range(count), including the first, and the last if the spacing permits.

    Args:
        count: number of indices to select from.
        most: maximum number of selected indices.
    """
    if count <= most:
        return list(range(count))
    steps = [step for step in range(1, count) if (count - 1) // step < most]
    divisors = [step for step in steps if (count - 1) % step == 0 and (count - 1) // step >= min(_FEWEST, most) - 1]
    step = (divisors or steps)[0]
    return list(range(0, count, step))


def format_map_time(time: Any) -> str:
    """Format a time for titles, such as "2016-07-12 06:30 UTC", with seconds if they are not 0."""
    if not isinstance(time, np.datetime64):
        return str(time)
    text = np.datetime_as_string(time, unit="s").replace("T", " ")
    return f"{text.removesuffix(':00')} UTC"
