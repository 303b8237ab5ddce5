# SPDX-License-Identifier: Apache-2.0
"""Mutants: small errors by the operators of cosmic-ray, except in annotations."""

import ast
import dataclasses
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of the source code.

    Attributes:
        path: file.
        operator: name of the operator of cosmic-ray.
        occurrence: number of the place in the file where the operator is applied.
        line: line of this place.
    """

    path: str
    operator: str
    occurrence: int
    line: int


def annotations(source: str) -> list[tuple]:
    """Return start and end (line, column) of annotations, in which mutants have no effect."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if isinstance(n, ast.AST)]


def mutants_of(path: Path, root: Path = ROOT) -> list[Mutant]:
    """Return all mutants of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source, found = path.read_text(), []
    nodes, left_out = list(ast_nodes(get_ast(source))), annotations(source)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name == "core/NoOp":  # for errors of one's own, and for none
            continue
        places = [start for node in nodes for start, _ in operator().mutation_positions(node)]
        for k, start in enumerate(places):
            if not any(first <= start < last for first, last in left_out):
                found.append(Mutant(path.relative_to(root).as_posix(), name, k, start[0]))
    return found


def mutated(source: str, mutant: Mutant) -> str:
    """Return the source with the error in it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)


def sample(count: int, seed: int, under: str) -> list[Mutant]:
    """Draw `count` mutants below fastds/`under`; a larger sample with the same seed begins with the smaller one."""
    files = sorted((ROOT / "fastds" / under).rglob("*.py"))
    every = [mutant for path in files for mutant in mutants_of(path)]
    random.Random(seed).shuffle(every)
    print(f"{len(every)} errors in {len(files)} files, {min(count, len(every))} of them drawn", flush=True)
    return every[:count]
