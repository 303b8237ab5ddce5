# SPDX-License-Identifier: Apache-2.0
"""Counts of the values that a method changed after it computed them, for the attributes and notes of a result."""

from __future__ import annotations

TELL = 1e-3  # a larger share of changed values is told in a note


class Changes:
    """Counts changed values by kind.

    Args:
        kinds: kind -> what was done, the end of the sentence "3.1 % of the values ...". The attribute of a kind is
            `fastds_<kind>_share`.
    """

    def __init__(self, kinds: dict[str, str]):
        self.kinds = kinds
        self.changed, self.total = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)

    def add(self, kind: str, changed: int, total: int) -> None:
        """Count `changed` of `total` further values."""
        self.changed[kind] += int(changed)
        self.total[kind] += int(total)

    def attributes(self) -> dict[str, float]:
        """The share of changed values by kind, of the kinds that any values were counted of."""
        return {f"fastds_{kind}_share": float(f"{share:.3g}") for kind, share in self._shares().items()}

    def notes(self) -> list[str]:
        """A sentence for every kind of which more than TELL of the values were changed."""
        return [
            f"{share:.1%} of the values {self.kinds[kind]}" for kind, share in self._shares().items() if share > TELL
        ]

    def _shares(self) -> dict[str, float]:
        return {kind: self.changed[kind] / total for kind, total in self.total.items() if total}
