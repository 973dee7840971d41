"""Self-consistency (Wang et al. 2022, arXiv 2203.11171) for SQL: several samples answer a question,
and the result that most of them return wins.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.rewards import TIMEOUT_BUDGET
from sqlenv import Execution, Sandbox
from sqlenv.consensus import result_groups

SURE = 0.5  # an answer with a smaller share of the samples is unsure
NO_SQL = Execution("no SQL", error="the model wrote no SQL")


@dataclass(frozen=True)
class Vote:
    """The SQL that won.

    Attributes:
        sql: None if no sample has SQL.
        execution: of it, with its rows.
        agreement: the share of all samples that return the same; 0 if nothing runs.
    """

    sql: str | None
    execution: Execution
    agreement: float


def vote(sandbox: Sandbox, db_path: Path, sqls: Sequence[str | None]) -> Vote:
    """The commonest SQL of those that return the commonest result; the first of several.

    Results are equal as for EX, and the order of rows counts where both queries have one. If
    nothing runs, the first SQL wins, with no share.

    Args:
        sqls: one of each sample, None where it has none.
    """
    counts = Counter(sql for sql in sqls if sql is not None)  # in the order of the samples
    budget = {"timeout_budget": TIMEOUT_BUDGET}
    runs, groups = result_groups(sandbox, db_path, list(counts), **budget)
    if groups:
        sizes = [sum(counts[sql] for sql in group) for group in groups]
        best = sizes.index(max(sizes))
        sql = max(groups[best], key=counts.__getitem__)
        return Vote(sql, runs[sql], sizes[best] / len(sqls))
    first = next(iter(counts), None)
    return Vote(first, NO_SQL if first is None else runs[first], 0.0)
