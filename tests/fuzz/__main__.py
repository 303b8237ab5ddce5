# SPDX-License-Identifier: Apache-2.0
"""Runs random calls of the ops: `python -m tests.fuzz --calls 1000000`."""

import argparse
import sys
from pathlib import Path

from .campaign import campaign, case_of, one, resumed, summary
from .strategies import KINDS, STRATEGIES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000, help="of all together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ops", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="OP")
    parser.add_argument("--log", type=Path, default=Path("build/fuzz.jsonl"), help="default: %(default)s")
    parser.add_argument("--repeat", nargs=3, metavar=("OP", "KIND", "NUMBER"), help="one call, in this process")
    parser.add_argument("--summary", action="store_true", help="only print what the log has")
    args = parser.parse_args()
    if args.repeat:
        op, kind, number = args.repeat
        if op not in STRATEGIES or kind not in KINDS:
            parser.error(f"--repeat: expected an op and one of {', '.join(KINDS)}, got {op} {kind}")
        print(case_of(args.seed, op, kind, int(number)))
        print(one(args.seed, op, kind, int(number)) or "right")
        return 0
    if args.summary:
        print(summary(*resumed(args.log, args.seed)))
        return 0
    return 1 if campaign(args.calls, args.seed, args.ops, args.log).total() else 0


if __name__ == "__main__":
    sys.exit(main())
