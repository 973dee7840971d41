"""The world that the policy acts in: SQLite databases, questions about them, and SQL.

`load_dataset` gives questions with gold SQL and a database; `load_schema` and `schema_text` turn
the database into a prompt; `extract_sql` finds the query in a completion; `Sandbox` runs it as
the hostile text that it may be; `results_match` compares what it gives with what gold gives; and
`share` and `paired_difference` sum up, with intervals. `make_mutants` makes
queries that almost mean the same; `load_suite` makes databases that tell the former
apart, and `suite_matches` judges by them. What the user can mend is a `UserError`.
Nothing here knows of torch, of training or of rewards.
"""

from sqlenv.dataset import (
    EMBEDDED,
    LANGUAGES,
    Example,
    by_database,
    database_path,
    load_dataset,
    read_dataset,
)
from sqlenv.errors import UserError
from sqlenv.metrics.bootstrap import paired_difference, share
from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.schema import Column, ForeignKey, Schema, Table, load_schema, sample_values, schema_text
from sqlenv.testsuite.mutants import Mutant, make_mutants
from sqlenv.testsuite.suite import Suite, load_suite, suite_matches
from sqlenv.text import canonical_sql, extract_sql, format_sql, is_ordered
from sqlenv.verifier import ExecutionVerifier, Verdict

__all__ = [
    "EMBEDDED",
    "LANGUAGES",
    "Column",
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
    "database_path",
    "extract_sql",
    "format_sql",
    "is_ordered",
    "load_dataset",
    "load_schema",
    "load_suite",
    "make_mutants",
    "paired_difference",
    "read_dataset",
    "results_match",
    "sample_values",
    "schema_text",
    "share",
    "suite_matches",
]
