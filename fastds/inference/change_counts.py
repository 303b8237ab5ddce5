# SPDX-License-Identifier: Apache-2.0
"""Counts of values that a method changed after computing them, for attributes and notes of a result."""

from __future__ import annotations

NOTE_THRESHOLD = 1e-3  # A note mentions a change that affects more than this fraction of the values.


class ChangeCounts:
    """Counts of changed values by kind of change.

    Args:
        kinds: for each kind, the end of a note that begins "3.1 % of the values ...". The fraction of a kind becomes
            the attribute `fastds_<kind>_share`.
    """

    def __init__(self, kinds: dict[str, str]):
        self.kinds = kinds
        self.changed, self.total = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)

    def add(self, kind: str, changed: int, total: int) -> None:
        """Add changed values to the count of a kind of change.

        Args:
            kind: kind of change, a key of `kinds`.
            changed: number of changed values.
            total: number of values that were checked.
        """
        self.changed[kind] += int(changed)
        self.total[kind] += int(total)

    def attributes(self) -> dict[str, float]:
        """Return the fraction of changed values for each kind of change that has been counted."""
        return {f"fastds_{kind}_share": float(f"{share:.3g}") for kind, share in self._shares().items()}

    def notes(self) -> list[str]:
        """Return a note for each kind that changed more than NOTE_THRESHOLD of the values."""
        return [
            f"{share:.1%} of the values {self.kinds[kind]}"
            for kind, share in self._shares().items()
            if share > NOTE_THRESHOLD
        ]

    def _shares(self) -> dict[str, float]:
        return {kind: self.changed[kind] / total for kind, total in self.total.items() if total}
