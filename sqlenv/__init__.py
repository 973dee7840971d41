"""The environment of the policy: questions, SQLite databases, and the execution of SQL.

- ``open_dataset``, ``load_dataset``: questions with gold SQL and database, in several formats
- ``load_schema``, ``schema_text``: the schema of a database and its text in a prompt
- ``sample_values``, ``question_values``: values for that text
- ``extract_sql``, ``canonical_sql``, ``format_sql``: SQL as text
- ``Sandbox``, ``results_match``, ``ExecutionVerifier``: execution of SQL and comparison with gold
- ``load_suite``, ``suite_matches``, ``make_mutants``: test suites and the mutants behind them
- ``share``, ``paired_difference``: metrics with confidence intervals

Errors that the user can cause are ``UserError``. The package does not use torch and does not depend
on training or rewards.
"""

from sqlenv.dataset import (
    EMBEDDED,
    Dataset,
    Example,
    by_database,
    chosen_languages,
    load_dataset,
    open_dataset,
    read_dataset,
)
from sqlenv.errors import UserError
from sqlenv.extraction import extract_sql
from sqlenv.metrics.bootstrap import paired_difference, share
from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.schema import Column, ForeignKey, Schema, Table, load_schema, schema_text
from sqlenv.testsuite.mutants import Mutant, make_mutants
from sqlenv.testsuite.suite import Suite, load_suite, suite_matches
from sqlenv.text import canonical_sql, format_sql, is_ordered
from sqlenv.values import question_values, sample_values
from sqlenv.verifier import ExecutionVerifier, Verdict

__all__ = [
    "EMBEDDED",
    "Column",
    "Dataset",
    "Example",
    "ExecutionVerifier",
    "Execution",
    "ForeignKey",
    "Mutant",
    "Sandbox",
    "Schema",
    "Suite",
    "Table",
    "UserError",
    "Verdict",
    "by_database",
    "canonical_sql",
    "chosen_languages",
    "extract_sql",
    "format_sql",
    "is_ordered",
    "load_dataset",
    "load_schema",
    "load_suite",
    "make_mutants",
    "open_dataset",
    "paired_difference",
    "question_values",
    "read_dataset",
    "results_match",
    "sample_values",
    "schema_text",
    "share",
    "suite_matches",
]
