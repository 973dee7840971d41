"""Gold that the sandbox refuses or stops is reported apart from gold that is broken."""

import csv
import json
import sqlite3

from tests.test_evaluate import ENDLESS, GOLD, line, root, run, write

__all__ = ["root"]  # a fixture


def test_gold_that_the_sandbox_stops_is_reported_apart(root, tmp_path, capsys):
    """Of four golds one is broken, and three run in SQLite: one without end, two by chance. The
    report names SQLite's version, too.
    """
    golds = ["SELECT gone FROM singer", ENDLESS, "SELECT random()", "SELECT random() % 2"]
    path = write(tmp_path / "p.jsonl", [line(GOLD), *(line(GOLD, gold=gold) for gold in golds)])
    outputs = ["--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv"]
    assert run(root, path, *outputs) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["failed_gold"] == {"en": 4}
    assert report["stopped_gold"] == {"en": {"timeout": 1, "denied": 2}}
    assert report["sqlite"] == sqlite3.sqlite_version
    shown = capsys.readouterr().out
    assert (
        "left out 4 questions whose gold query fails (refused or stopped by the sandbox: " in shown
    )
    assert "1 timeout" in shown and "2 denied" in shown
    assert f"the SQL ran on SQLite {sqlite3.sqlite_version}" in shown
    rows = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    stopped = {(r["metric"], r["value"]) for r in rows if r["section"] == "stopped gold"}
    assert stopped == {("timeout", "1"), ("denied", "2")}
