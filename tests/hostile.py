# SPDX-License-Identifier: Apache-2.0
"""Loads randomly corrupted weights files: `python -m tests.hostile`.

A file may be rejected with an error message that names it ("refused"). It may be loaded with the original weights and
configuration ("same"), or with another plausible value in its configuration or model card ("other"). Faults are "wrong"
(other weights), "unclear" (another error, or no file name in the message) and "slow".
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fastds import models
from fastds.models.weight_files import WEIGHTS

DEEP = "[" * 100_000 + "]" * 100_000
VALUES = (None, True, -1, 0, 3, 10**9, 10**30, 1e308, float("nan"), float("-inf"))
VALUES += ("", "x" * 100_000, "../a", [], {}, [[0]], [0, 9])
SECONDS = 20.0
FAULTS = ("wrong", "unclear", "slow")


def split(data: bytes) -> tuple[dict, bytes]:
    """Split a safetensors file into its header and the rest."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def changed(tree, draw: random.Random):
    """Replace, remove or rename one node of a JSON text."""
    places = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = range(len(node)) if isinstance(node, list) else list(node)
        places += [(node, key) for key in keys]
        pending += [node[key] for key in keys if isinstance(node[key], dict | list)]
    node, key = draw.choice(places)
    how = draw.choice(("replace", "replace", "replace", "remove", "rename"))
    value = node.pop(key) if how != "replace" else draw.choice(VALUES)
    if how == "replace":
        node[key] = value
    elif how == "rename" and isinstance(node, dict):
        node[str(key) + "x"] = value
    return tree


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: int(len(data) * draw.random() ** 3)]


def flipped(data: bytes, draw: random.Random) -> bytes:
    harmed, end = bytearray(data), draw.choice((16, 4096, len(data)))
    for _ in range(draw.choice((1, 1, 8, 64))):
        harmed[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(harmed)


def other_header(data: bytes, draw: random.Random) -> bytes:
    header, rest = split(data)
    return joined(changed(header, draw), rest)


def other_metadata(data: bytes, draw: random.Random) -> bytes:
    """Change a value of the configuration or of the model card, or insert deeply nested JSON."""
    header, rest = split(data)
    metadata, part = header["__metadata__"], draw.choice(("config", "config", "card"))
    deep = draw.random() < 0.02
    metadata[part] = DEEP if deep else json.dumps(changed(json.loads(metadata[part]), draw))
    return joined(header, rest)


HARM = {"cut": cut, "flipped": flipped, "header": other_header, "metadata": other_metadata}


def outcome(path: Path, original: torch.nn.Module) -> tuple[str, str]:
    """Load a file; return the outcome and the message."""
    began = time.monotonic()
    try:
        model = models.load(path)
    except ValueError as error:
        message = str(error)
        result = "refused" if str(path) in message and len(message.splitlines()) == 1 else "unclear"
    except Exception as error:
        result, message = "unclear", repr(error)
    else:
        ours, theirs = model.state_dict(), original.state_dict()
        equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        same = model.config == original.config and model.card == original.card
        result, message = ("same" if same else "other") if equal else "wrong", ""
    return ("slow" if time.monotonic() - began > SECONDS else result), message[:300]


def campaign(loads: int, seed: int) -> tuple[Counter, list[str]]:
    """Return counts of (corruption, outcome), and the faults."""
    counts, faults = Counter(), []
    originals = {path: models.load(path) for path in sorted(WEIGHTS.glob("*.safetensors"))}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(loads):
            draw = random.Random(f"{seed} {number}")
            source, kind = draw.choice(list(originals)), draw.choice(list(HARM))
            path = Path(folder, "harmed.safetensors")
            path.write_bytes(HARM[kind](source.read_bytes(), draw))
            result, message = outcome(path, originals[source])
            counts[kind, result] += 1
            if result in FAULTS:
                faults.append(f"{result}: load {number}, {kind} of {source.name}: {message}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts, faults = campaign(args.loads, args.seed)
    results = ("refused", "same", "other", *FAULTS)
    print(f"{'harm':12}" + "".join(f"{result:>10}" for result in results))
    for kind in HARM:
        print(f"{kind:12}" + "".join(f"{counts[kind, result]:10}" for result in results))
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
