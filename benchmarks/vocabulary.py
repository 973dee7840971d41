"""Prints which share of the tables and columns that dev asks about occurs in training, by part.

    python -m benchmarks.vocabulary

A name occurs in training if a table or column that schemas are generated from can have it
(sqlenv/embedded/sources.py), in any style of writing, singular or plural. A question is known
if all of its names are.
"""

import sys

from benchmarks.copying import names
from sqlenv import EMBEDDED, load_dataset
from sqlenv.embedded.generate import generated_databases
from sqlenv.embedded.sources import load_sources
from sqlenv.errors import exit_code
from sqlenv.metrics.tables import markdown_table


def plain(name: str) -> str:
    """A name without its style: lower case, no underscores, singular."""
    return name.lower().replace("_", "").removesuffix("s")


def training_names() -> set[str]:
    """The names of all tables and columns that schemas are generated from, and keys like theirs."""
    known = set()
    for tables in load_sources(("en",)).values():
        for table in tables.values():
            known.update(plain(name) for name in table.names)
            known.update(plain(f"{name}_id") for name in table.names)
            known.update(plain(name) for column in table.columns for name in column.names)
    return known


def run() -> None:
    known, rows = training_names(), [("part", "questions", "names known %", "questions known %")]
    generated = set(generated_databases())  # made of these names, in styles that abbreviate
    by_part: dict[str, list[list[bool]]] = {}
    for example in load_dataset(EMBEDDED, "en", "dev"):
        is_known = [
            plain(name) in known or example.db_id in generated for name in names(example.gold_sql)
        ]
        by_part.setdefault(example.part, []).append(is_known)
    for part, questions in sorted(by_part.items()):
        flat = [known for question in questions for known in question]
        all_known = sum(map(all, questions)) / len(questions)
        shares = f"{100 * sum(flat) / len(flat):.1f}", f"{100 * all_known:.1f}"
        rows.append((part, str(len(questions)), *shares))
    print(markdown_table(rows))


if __name__ == "__main__":
    sys.exit(exit_code(run))
