"""Gold whose result SQL leaves open on the given database: evaluation says so."""

import csv
import json

from sqlenv import Example, ExecutionVerifier, Sandbox
from tests.test_evaluate import line, root, run, write  # noqa: F401 (fixture)
from tests.test_populate import ARBITRARY, TIED
from tests.test_testsuite import write_database

# max() takes the bare column from a row of the maximum: SQLite's choice among tied rows is not
# looked at on the given database, since this would sort whole tables.
NOT_LOOKED_AT = "SELECT name, max(age) FROM t GROUP BY city"


def test_arbitrary_gold_is_recognised_on_the_given_database(tmp_path):
    """The cases of test_populate.py, in the sandbox; all others have one result only."""
    examples, expected = [], []
    for number, (rows, sql, arbitrary) in enumerate(ARBITRARY):
        path = write_database(tmp_path / f"{number}.sqlite", TIED.format(rows))
        examples.append(Example("?", "en", "tied", sql, path))
        expected.append(arbitrary and sql != NOT_LOOKED_AT)
    with Sandbox() as sandbox:
        assert ExecutionVerifier(sandbox).gold_is_arbitrary(examples) == expected


def test_gold_that_fails_or_takes_too_long_with_ties_broken_is_not_called_arbitrary(tmp_path):
    """Broken gold has no result. Without ORDER BY, LIMIT 1 ends an endless query at its first row,
    with one it never ends, so that nothing is known."""
    path = write_database(tmp_path / "tied.sqlite", TIED.format("('a', 1, 'x'), ('b', 1, 'x')"))
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
    golds = ["SELECT nam FROM t ORDER BY age LIMIT 1", f"{endless} LIMIT 1"]
    with Sandbox(timeout=0.2) as sandbox:
        verifier = ExecutionVerifier(sandbox)
        examples = [Example("?", "en", "tied", gold, path) for gold in golds]
        assert [result.status for result in verifier.run_gold(examples)] == ["error", "ok"]
        assert verifier.gold_is_arbitrary(examples) == [False, False]


def test_questions_with_arbitrary_gold_are_counted_and_named(root, tmp_path, capsys):  # noqa: F811
    """ORDER BY age > 0 ties all three singers, so LIMIT 1 is open: one question in English, two in
    Vietnamese. They stay in the shares."""
    tie = "SELECT name FROM singer ORDER BY age > 0 LIMIT 1"
    lines = [line(tie, gold=tie), line("SELECT name FROM singer WHERE age > 30")]
    lines += [line(tie, gold=tie, lang="vi")] * 2
    files = [f"--{name}={tmp_path / name}" for name in ("json", "csv", "markdown")]
    saved = tmp_path / "saved.jsonl"
    path = write(tmp_path / "p.jsonl", lines)
    assert run(root, path, *files, "--save-predictions", saved) == 0
    report = json.loads((tmp_path / "json").read_text())
    assert report["arbitrary_gold"] == {"en": 1, "vi": 2}
    assert report["en"]["execution"]["n"] == 2
    note = "vi: 2 questions whose gold result is arbitrary"
    assert note in capsys.readouterr().out and note in (tmp_path / "markdown").read_text()
    rows = csv.DictReader((tmp_path / "csv").open(newline=""))
    counts = {r["name"]: r["value"] for r in rows if r["section"] == "arbitrary gold"}
    assert counts == {"en": "1", "vi": "2"}
    saved = [json.loads(row)["gold_arbitrary"] for row in saved.read_text().splitlines()]
    assert saved == [True, False, True, True]
