"""Hard negatives: SQL that is almost right, as models get it wrong, each labelled with its kind.

A random other SQL of the database is easy to tell from gold: it reads other tables. The reward is
needed where two queries differ by `>` and `>=`. The mutants of `sqlenv/testsuite/`, which also
choose the test-suite databases, are what the encoder has to put further from the question than
gold. They are made from the parsed query, so that nothing inside a literal changes by accident.
"""

import functools
import random
from collections.abc import Sequence

from sqlenv import Schema, make_mutants
from sqlenv.testsuite.mutants import KINDS as MUTANT_KINDS
from sqlenv.testsuite.mutants import Mutant

KINDS = tuple(MUTANT_KINDS)


@functools.lru_cache(maxsize=100_000)
def hard_negatives(sql: str, schema: Schema) -> tuple[Mutant, ...]:
    """All near misses (text, kind) of a query, in an order that depends on the arguments only."""
    return tuple(make_mutants(sql, schema))


def draw_negatives(negatives: Sequence[Mutant], count: int, rng: random.Random) -> list[Mutant]:
    """At most `count` different ones, each time of a kind drawn first: a query has ten other
    columns to confuse, but one DISTINCT to forget, and both are to be learnt.
    """
    kinds: dict[str, list[Mutant]] = {}
    for negative in rng.sample(negatives, len(negatives)):
        kinds.setdefault(negative.kind, []).append(negative)
    drawn = []
    while kinds and len(drawn) < count:
        kind = rng.choice(list(kinds))
        drawn.append(kinds[kind].pop())
        if not kinds[kind]:
            del kinds[kind]
    return drawn
