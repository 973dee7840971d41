"""Tests of benchmarks/poor_databases.py."""

import re
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from benchmarks.paper_data import derived
from benchmarks.poor_databases import asked, right_pairs, table
from sqlenv import EMBEDDED, Sandbox, UserError, load_dataset


def test_the_right_one_of_a_pair_scores_higher():
    """Right and rewarded: 0.9 and 0.2. Wrong and rewarded: 0.2 and 0.5. Of the four pairs, 0.9 wins
    two, 0.2 ties one and loses one: 2.5. The last one is wrong and was not rewarded.
    """
    scores = np.array([0.9, 0.2, 0.2, 0.5, 0.0])
    rewarded = np.array([True, True, True, True, False])
    right = np.array([True, True, False, False, False])
    assert right_pairs(scores, rewarded, right) == (2.5, 4)
    assert right_pairs(scores, right, right) == (0.0, 0)


def three_rows_of_more():
    """A training question for a column of a table that has three rows in ``poor-3`` and more in the
    whole database.
    """
    whole = {(e.db_id, e.question): e for e in load_dataset(EMBEDDED, "vi", "train")}
    for few in load_dataset(derived("poor-3"), "vi", "train"):
        if re.fullmatch(r"SELECT \w+ FROM \w+", few.gold_sql):
            counts = []
            for example in (few, whole[few.db_id, few.question]):
                with closing(sqlite3.connect(example.db_path)) as connection:
                    counts.append(len(connection.execute(few.gold_sql).fetchall()))
            if counts[0] == 3 < counts[1]:
                return few
    raise AssertionError("no such question")


def test_execution_rewards_a_wrong_answer_where_rows_are_few():
    """LIMIT 3 changes nothing where there are three rows: execution rewards two of the four
    completions. One of them is wrong, and the encoder scored it lower. On the whole database
    execution rewards gold alone.
    """
    example = three_rows_of_more()
    sqls = [example.gold_sql, f"{example.gold_sql} LIMIT 3", "SELECT 1 WHERE 0", None]
    completions = [
        {"sql": sql, "terms": {"semantic": score}} for sql, score in zip(sqls, (0.8, 0.6, 0.0, 0.0))
    ]
    group = {"db_id": example.db_id, "question": example.question, "completions": completions}
    with Sandbox() as sandbox:
        _, few, every = table(sandbox, [group], ("poor-3", "poor-all"))
        group["completions"] = [{"sql": sql, "terms": {"execution": 0.0}} for sql in sqls]
        unscored = table(sandbox, [group], ("poor-3",))[1]
    assert few == ("3", "50.0", "50.0", "50.0", "1", "100.0")
    assert unscored == (*few[:4], "1", "")
    assert every == ("all", "25.0", "100.0", "100.0", "0", "")


def test_a_run_on_other_questions_is_refused():
    group = {"db_id": "zoo", "question": "no such question", "completions": []}
    with pytest.raises(UserError, match="no question 'no such question'"):
        asked(EMBEDDED, [group])
