"""Which of several queries return the same: the base of voting and of the reward ``consensus``."""

from collections.abc import Sequence
from pathlib import Path

from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.text import is_ordered


def result_groups(
    sandbox: Sandbox, db_path: Path, sqls: Sequence[str], *, timeout_budget: float | None = None
) -> tuple[dict[str, Execution], list[list[str]]]:
    """Runs queries, equal ones once.

    Results are equal as for EX, and the order of rows counts where both queries have one.

    Args:
        timeout_budget: seconds for the queries that time out, see ``Sandbox.run_each``.

    Returns:
        The execution of each query, with its rows, and the queries that run, in groups with equal
        results. Queries and groups are in the order in which they first occur in ``sqls``.
    """
    distinct = list(dict.fromkeys(sqls))
    queries = [(db_path, sql) for sql in distinct]
    runs = dict(zip(distinct, sandbox.run_many(queries, timeout_budget=timeout_budget)))
    groups: list[list[str]] = []
    for sql in (sql for sql, run in runs.items() if run.status == "ok"):
        for group in groups:
            ordered = is_ordered(group[0]) and is_ordered(sql)
            if results_match(runs[group[0]], runs[sql], ordered=ordered):
                group.append(sql)
                break
        else:
            groups.append([sql])
    return runs, groups


def finds_something(run: Execution) -> bool:
    """Whether a result has rows, and not only the one of NULL and 0 that aggregates over no rows
    return.
    """
    return len(run.rows) > 1 or any(value not in (None, 0) for row in run.rows for value in row)


def consensus(
    sandbox: Sandbox,
    db_path: Path,
    sqls: Sequence[str | None],
    *,
    timeout_budget: float | None = None,
) -> list[float]:
    """For each of the queries the share of all that return what it returns (self-consistency as a
    reward: TTRL, arXiv 2504.16084, which rewards the majority alone). 0 for a query that fails,
    reads no table, or finds nothing: these would be the easiest answers to agree on.

    Args:
        sqls: the answers to one question, None where there is no query, or one known to fail.
    """
    written = [sql for sql in sqls if sql is not None]
    runs, groups = result_groups(sandbox, db_path, written, timeout_budget=timeout_budget)
    shares = dict.fromkeys(written, 0.0)
    for group in groups:
        counted = [sql for sql in group if runs[sql].reads and finds_something(runs[sql])]
        share = sum(written.count(sql) for sql in counted) / len(sqls)
        shares |= dict.fromkeys(counted, share)
    return [0.0 if sql is None else shares[sql] for sql in sqls]
