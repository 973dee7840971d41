"""How often a prompt shows the values that its question is about.

    python -m benchmarks.sample_values --data ROOT --lang en

For the text literals of the gold queries that are in the database as they are: the share that is
among the first N values of each column, and the share that is among these or the N values of each
column that the question seems to name (``--sample-values N`` of train.py). No model takes part.
"""

import argparse
import time
from contextlib import closing

from sqlenv import EMBEDDED, load_dataset, load_schema, question_values, sample_values
from sqlenv.metrics.tables import text_table
from sqlenv.schema import open_read_only, quote_name
from sqlenv.text import tokenize


def literals(sql: str) -> set[str]:
    """The text literals of a query, and what may be one: SQLite reads "x" as a text if no column
    has that name.

    >>> sorted(literals("SELECT a FROM t WHERE b = 'O''Hara' OR b = \\"x\\""))
    ["O'Hara", 'x']
    """
    tokens = [token.group() for token in tokenize(sql) if token.lastgroup in ("string", "quoted")]
    return {text[1:-1].replace(text[0] * 2, text[0]) for text in tokens if text[0] in "'\""}


def all_texts(db_path) -> set[str]:
    """All different texts of a database."""
    texts = set()
    with closing(open_read_only(db_path)) as connection:
        for table in load_schema(db_path).tables:
            for column in table.columns:
                name = quote_name(column.name)
                query = f"SELECT DISTINCT {name} FROM {quote_name(table.name)}"
                texts |= {text for (text,) in connection.execute(query) if isinstance(text, str)}
    return texts


def values_of(samples: dict) -> set:
    return {value for values in samples.values() for value in values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(EMBEDDED), help="dataset root")
    parser.add_argument("--lang", default="en")
    parser.add_argument("--split", default="dev")
    arguments = parser.parse_args()
    examples = load_dataset(arguments.data, arguments.lang, arguments.split)
    every = {path: all_texts(path) for path in {e.db_path for e in examples}}
    wanted = [literals(e.gold_sql) & every[e.db_path] for e in examples]
    total, rows = sum(map(len, wanted)), [("N", "first values", "and those named")]
    first = {path: {n: values_of(sample_values(path, n)) for n in (1, 2, 3, 5)} for path in every}
    start = time.process_time()
    for n in (1, 2, 3, 5):
        plain = sum(len(w & first[e.db_path][n]) for w, e in zip(wanted, examples))
        shown = [
            first[e.db_path][n] | values_of(question_values(e.db_path, e.question, n))
            for e in examples
        ]
        named = sum(len(w & s) for w, s in zip(wanted, shown))
        rows.append((str(n), f"{100 * plain / total:.1f}", f"{100 * named / total:.1f}"))
    seconds = (time.process_time() - start) / (4 * len(examples))
    print(text_table(rows))
    print(
        f"\npercent of {total} literals in {len(examples)} questions on {len(every)} databases; "
        f"{1000 * seconds:.1f} ms a question"
    )


if __name__ == "__main__":
    main()
