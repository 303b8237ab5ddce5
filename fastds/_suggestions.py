# SPDX-License-Identifier: Apache-2.0
"""Suggestions of known names for unknown ones."""

import difflib
import re
from collections.abc import Collection, Iterable

_PAPER_NAME = re.compile(r"^(fc-)?zsm(?=-|$)")  # the papers write FC-ZSM and ZSM-DS for fczsm and fczsm-ds


def add_article(name: str) -> str:
    """Return a name with its indefinite article: "a Tensor", "an ErrorLaw"."""
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def resolve_name(word: str, known: Collection[str]) -> str | None:
    """Return the known lower-case name for a name in any case or in the spelling of the papers.

    Examples of the latter are "DB-PrecipLSTM" and "ZSM-DS".

    Args:
        word: Name.
        known: Known names.

    Returns:
        Known name, or None.
    """
    name = _PAPER_NAME.sub("fczsm", word.lower())
    return word if word in known else name if name in known else None


def suggest(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return a suggestion that ends an error message: "; did you mean --scale?", or "" without a similar name.

    Args:
        word: Unknown name.
        known: Known names. Names that begin with `word` come first, the shortest at the front.
        most: Largest number of suggestions.
    """
    known = sorted(set(known), key=lambda name: (len(name), name))
    begun = [name for name in known if len(word.strip("-")) > 1 and name.lower().startswith(word.lower())]
    near = difflib.get_close_matches(word.lower(), known, n=most + 3, cutoff=0.65)
    found = list(dict.fromkeys([*begun, *near]))[:most]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def suggest_and_list(word: str, known: Iterable[str]) -> str:
    """Return the suggestion of `suggest` and all known names: "; did you mean radar? There are: radar, fields"."""
    known = list(known)
    near = suggest(word, known)
    return f"{near} There are: {', '.join(known)}" if near else f"; there are: {', '.join(known)}"
