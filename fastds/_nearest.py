# SPDX-License-Identifier: Apache-2.0
"""The nearest of the known names to one that is unknown."""

import difflib
import re
from collections.abc import Collection, Iterable

_PAPERS_NAME = re.compile(r"^(fc-)?zsm(?=-|$)")  # FC-ZSM, ZSM-DS, ...: fczsm, fczsm-ds


def with_article(name: str) -> str:
    """ "a Tensor", "an ErrorModel"."""
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def spelled(word: str, known: Collection[str]) -> str | None:
    """The known name, in small letters, that a word stands for in any case and as the papers write it ("DB-PrecipLSTM",
    "ZSM-DS"); None where there is none."""
    plain = _PAPERS_NAME.sub("fczsm", word.lower())
    return word if word in known else plain if plain in known else None


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a sentence about an unknown name: "; did you mean --scale?", or "" where nothing known is near.

    Args:
        word: what was given.
        known: the names that are known; of those that begin with the word the shortest come first.
        most: how many are named at most.
    """
    known = sorted(set(known), key=lambda name: (len(name), name))
    begun = [name for name in known if len(word.strip("-")) > 1 and name.lower().startswith(word.lower())]
    near = difflib.get_close_matches(word.lower(), known, n=most + 3, cutoff=0.65)
    found = list(dict.fromkeys([*begun, *near]))[:most]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def there_are(word: str, known: Iterable[str]) -> str:
    """The same, and all known names: "; did you mean radar? There are: radar, fields"."""
    known = list(known)
    near = did_you_mean(word, known)
    return f"{near} There are: {', '.join(known)}" if near else f"; there are: {', '.join(known)}"
