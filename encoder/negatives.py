"""Hard negatives: SQL that is almost right, as models get it wrong, each labelled with its kind.

A random other SQL of the database is easy to tell from gold: it reads other tables. The reward is
needed where two queries differ by `>` and `>=`. The mutants of `sqlenv/testsuite/`, which also
choose the test-suite databases, are what the encoder has to put further from the question than
gold. They are made from the parsed query, so that nothing inside a literal changes by accident.
"""

import functools
import random
from collections.abc import Sequence

from sqlenv import Schema, near_misses
from sqlenv.testsuite.mutants import KINDS as MUTANT_KINDS
from sqlenv.testsuite.mutants import NearMiss

KINDS = tuple(MUTANT_KINDS)


@functools.lru_cache(maxsize=100_000)
def hard_negatives(sql: str, schema: Schema) -> tuple[NearMiss, ...]:
    """All near misses (text, kind) of a query, in an order that depends on the arguments only."""
    return tuple(near_misses(sql, schema))


def draw_negatives(negatives: Sequence[NearMiss], count: int, rng: random.Random) -> list[NearMiss]:
    """At most `count` different ones, each time of a kind drawn first: a query has ten other
    columns to confuse, but one DISTINCT to forget, and both are to be learnt.
    """
    kinds: dict[str, list[NearMiss]] = {}
    for negative in rng.sample(negatives, len(negatives)):
        kinds.setdefault(negative.kind, []).append(negative)
    drawn = []
    while kinds and len(drawn) < count:
        kind = rng.choice(list(kinds))
        drawn.append(kinds[kind].pop())
        if not kinds[kind]:
            del kinds[kind]
    return drawn
