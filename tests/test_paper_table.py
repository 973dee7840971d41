"""The statistics and the bookkeeping of the paper's experiment."""

import json
import re

import numpy as np
import pytest

from benchmarks import paper_report, paper_table
from benchmarks.paper_report import METRICS, means
from benchmarks.paper_table import Cell, cells
from sqlenv import EMBEDDED, LANGUAGES, UserError, load_dataset

DEV = load_dataset(EMBEDDED, "en", "dev")
LENGTH = len(DEV)
GOLDS = [i // 3 for i in range(LENGTH)]  # three questions to each gold query


def made_cell(row: str, share: float, seed: int = 0, lang: str = "all") -> dict:
    """The first part of the questions right in every metric and language."""
    right = round(share * LENGTH)
    bits = "1" * right + "0" * (LENGTH - right)
    langs = LANGUAGES if lang == "all" else [lang]
    return {
        "row": row,
        "lang": lang,
        "seed": seed,
        "golds": GOLDS,
        "outcomes": {one: dict.fromkeys(METRICS, bits) for one in langs},
        "answers": {one: {"0": "SELECT 1"} for one in langs},
        "curve": {"reward/execution": [0.1, 0.2]},
    }


def test_a_row_is_the_mean_of_its_seeds():
    """(0.25 + 0.75) / 2 = 0.5; with such seeds the interval is at least as wide as they are apart
    half of the time: both drawn alike has probability 1/2, so 2.5 % and 97.5 % are near them.
    """
    found = means([made_cell("a", 0.25, 0), made_cell("a", 0.75, 1)]).average("execution")
    assert found["value"] == pytest.approx(0.5, abs=1e-3)
    assert found["low"] < 0.28 and found["high"] > 0.72 and found["n"] == 7 * LENGTH


def test_differences_are_paired():
    """The same questions but 10 % more: with paired draws the gain is sure, and the interval of
    the gain is narrower than that of either row.
    """
    one, other = means([made_cell("a", 0.4)]), means([made_cell("b", 0.5)])
    gained = other.minus(one).average("test_suite")
    alone = one.average("test_suite")
    assert gained["value"] == pytest.approx(0.1, abs=2e-3) and gained["low"] > 0.05
    assert gained["high"] - gained["low"] < alone["high"] - alone["low"]
    same = one.minus(means([made_cell("c", 0.4)])).average("valid")
    assert same["value"] == same["low"] == same["high"] == 0


def test_rows_are_compared_on_the_seeds_that_both_have():
    """0.5 of seed 0 against 0.4 of seed 0, not against the mean with seed 1; a warm start, which
    has no curve, is compared with all.
    """
    one = [made_cell("a", 0.5, 0)]
    other = [made_cell("b", 0.4, 0), made_cell("b", 0.1, 1)]
    assert paper_report.same_seeds(one, other) == (one, other[:1])
    fixed = [made_cell("warm start", 0.3) | {"curve": {}}]
    assert paper_report.same_seeds(other, fixed) == (other, fixed)


def test_gaps_to_english_are_paired(tmp_path):
    """English 0.4 and all others 0.4, but Vietnamese 0.3 and Chinese 0.5 of the same questions: the
    gap of what is equal is exactly 0, and the others' intervals leave 0 out.
    """
    one = made_cell("GRPO", 0.4)
    for lang, share in (("vi", 0.3), ("zh", 0.5)):
        one["outcomes"][lang] = made_cell("", share)["outcomes"][lang]
    results = paper_report.Results(tmp_path)
    results.joint["GRPO"] = [one]
    heads, gaps = paper_report.gap_table(results)
    found = dict(zip(heads, gaps))
    assert heads == ("EX - EX of en", "de", "es", "fr", "ja", "vi", "zh")
    assert found["de"] == "+0.0 (+0.0 to +0.0)"
    assert found["vi"].startswith("-10.") and found["zh"].startswith("+10.")
    assert "-" in found["vi"].split("to")[1] and "-" not in found["zh"]
    alone = means([one]).only("vi").of("vi", "execution")
    assert alone["value"] == pytest.approx(0.3, abs=2e-3) and alone["n"] == LENGTH


def test_questions_of_one_gold_query_are_drawn_together():
    """The interval over clusters is that of resampling clusters by hand."""
    clusters = np.array(GOLDS)
    cell = made_cell("a", 0.5)
    bits = np.array(list(map(int, cell["outcomes"]["vi"]["valid"])))
    rng = np.random.default_rng(1)
    groups = [bits[clusters == i] for i in range(clusters.max() + 1)]
    draws = []
    for _ in range(500):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        draws.append(np.concatenate(drawn).mean())
    found = means([cell]).of("vi", "valid")
    assert found["high"] - found["low"] == pytest.approx(
        np.percentile(draws, 97.5) - np.percentile(draws, 2.5), rel=0.15
    )


def test_known_and_unseen_databases_make_up_all_questions():
    known = paper_report.known_questions()
    assert 0.6 < known.mean() < 0.7
    one = made_cell("a", 0.5)
    sides = [means([one], mask).average("valid") for mask in (known, ~known)]
    sizes = [side["n"] for side in sides]
    total = sum(side["value"] * n for side, n in zip(sides, sizes)) / sum(sizes)
    assert sum(sizes) == 7 * LENGTH
    assert total == pytest.approx(means([one]).average("valid")["value"])


def test_cells_are_made_seed_by_seed_and_a_fixed_policy_once():
    found = cells(["warm start", "GRPO"], ["all"], 2)
    assert found == [
        Cell("warm start", "all", 0),
        Cell("GRPO", "all", 0),
        Cell("GRPO", "all", 1),
    ]
    assert Cell("GRPO + contrastive", "all", 1).name == "GRPO-contrastive-all-1"
    names = {cell.name for cell in cells(list(paper_table.ROWS), list(LANGUAGES), 3)}
    assert len(names) == len(cells(list(paper_table.ROWS), list(LANGUAGES), 3))


def test_the_page_is_filled_from_the_cells(tmp_path):
    """Only what stands between the marks changes; filling twice gives the same page."""
    folder, page = tmp_path / "results", tmp_path / "results.md"
    folder.mkdir()
    for one in (
        made_cell("warm start", 0.3),
        made_cell("GRPO", 0.4),
        made_cell("GRPO + contrastive", 0.5),
        made_cell("GRPO", 0.45, lang="vi"),
    ):
        name = f"{one['row']}-{one['lang']}.json"
        (folder / name).write_text(json.dumps(one))
    page.write_text(
        "Text.\n\n<!-- main -->\nold\n<!-- end -->\n\n<!-- single -->\n<!-- end -->\n"
        "\n<!-- examples -->\n<!-- end -->\n"
    )
    paper_report.write(folder, page)
    first = page.read_text()
    assert first.startswith("Text.\n\n<!-- main -->\n\n| row |") and "\nold\n" not in first
    assert "| GRPO + contrastive | 1 | 50.0 (" in first
    assert "    warm start: SELECT 1\n        execution 0.00, syntax 1.00, schema 0." in first
    assert "| vi | GRPO | 45.0 (" in first and "| -5.1 (" in first
    paper_report.write(folder, page)
    assert page.read_text() == first
    assert (tmp_path / "results-curves.png").stat().st_size > 1000
    page.write_text("<!-- unknown -->\n<!-- end -->")
    with pytest.raises(UserError, match="there is no table 'unknown'"):
        paper_report.write(folder, page)


def test_the_example_shown_is_the_one_on_which_rewards_differ(tmp_path):
    """Of three questions the second: the first is answered wrongly, in two ways, and the third
    alike.
    """
    gold = [example.gold_sql for example in DEV[:3]]
    kept = {
        "warm start": ["SELECT 1", "SELECT 2", gold[2]],
        "GRPO": ["SELECT 3", gold[1], gold[2]],
    }
    results = paper_report.Results(tmp_path)
    for row, texts in kept.items():
        answers = {"en": {str(i): sql for i, sql in enumerate(texts)}}
        results.joint[row] = [made_cell(row, 0.5) | {"answers": answers}]
    lines = paper_report.example_text(results).splitlines()
    assert lines[1] == f"    gold: {gold[1]}" and lines[2] == "    warm start: SELECT 2"
    assert lines[3].startswith("        execution 0.00")
    assert lines[4] == f"    GRPO: {gold[1]}" and lines[5].startswith("        execution 1.00")


def test_amounts_of_practice_are_compared_with_the_warm_start(tmp_path):
    """And what differs in nothing but the amount is no ablation."""
    folder, page = tmp_path / "results", tmp_path / "results.md"
    folder.mkdir()
    rows = {"warm start": 0.3, "GRPO + contrastive": 0.5, "300 examples": 0.35, "target gold": 0.4}
    for name, share in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(made_cell(name, share)))
    page.write_text("<!-- amounts -->\n<!-- end -->\n<!-- ablations -->\n<!-- end -->\n")
    paper_report.write(folder, page)
    first = [line.split(" | ")[0] for line in page.read_text().splitlines() if " - " in line]
    assert [line for line in first if "---" not in line] == [
        "| 300 examples - warm start",
        "| GRPO + contrastive - warm start",
        "| target gold - GRPO + contrastive",
    ]


def test_unknown_rows_and_languages_are_refused(capsys):
    assert paper_table.main(["--rows", "GRPO,nothing", "--report"]) == 2
    assert "--rows 'nothing': choose from zero-shot, warm start" in capsys.readouterr().err
    assert paper_table.main(["--rows", "zero-shot", "--report"]) == 2
    assert "--zero-shot" in capsys.readouterr().err
    assert paper_table.main(["--languages", "xx", "--report"]) == 2
    assert "--languages 'xx'" in capsys.readouterr().err


def answers(path, *rows: tuple[str, str, bool, bool]):
    """A predictions file of (language, gold, right, whether gold runs)."""
    lines = []
    for lang, gold, right, runs in rows:
        row = dict.fromkeys(METRICS, right) | {"lang": lang, "gold": gold, "gold_ok": runs}
        lines.append(json.dumps(row | {"db_id": "zoo", "predicted": f"SELECT {len(lines)}"}) + "\n")
    path.write_text("".join(lines))
    return path


def test_outcomes_of_a_predictions_file(tmp_path):
    """Three questions in two languages. The second is left out, since its gold fails in one; the
    others have the same gold query but for the case of its words.
    """
    golds = "SELECT a FROM t", "SELECT b FROM t", "select a from t"
    rows = [("en", gold, right, True) for gold, right in zip(golds, (True, True, False))]
    rows += [("vi", gold, True, gold != golds[1]) for gold in golds]
    found = paper_report.outcomes(answers(tmp_path / "predictions.jsonl", *rows))
    assert found["golds"] == [0, 0]
    assert found["outcomes"] == {
        "en": dict.fromkeys(METRICS, "10"),
        "vi": dict.fromkeys(METRICS, "11"),
    }
    assert found["answers"]["en"] == {"0": "SELECT 0", "2": "SELECT 2"}
    with pytest.raises(UserError, match="languages do not have the same questions"):
        paper_report.outcomes(answers(tmp_path / "ragged.jsonl", *rows[:-1]))


def test_answers_kept_are_to_other_questions_in_each_language(tmp_path):
    rows = [(lang, f"SELECT {i}", True, True) for lang in ("en", "vi") for i in range(72)]
    found = paper_report.outcomes(answers(tmp_path / "predictions.jsonl", *rows))["answers"]
    assert list(found["en"]) == [str(i) for i in range(0, 72, 3)]
    assert list(found["vi"]) == [str(i) for i in range(1, 72, 3)]


def test_an_experiment_on_other_models_has_tables_of_its_own(tmp_path):
    """Trained on English alone and measured in two languages, on three questions. The contrastive
    row has EX on all three in English and on one in Vietnamese, two thirds on average, and TS on
    two and none, a third.
    """
    folder, page = tmp_path / "results", tmp_path / "results.md"
    (folder / "small").mkdir(parents=True)
    rows = {"zero-shot": "000 000", "warm start": "100 100", "GRPO": "110 110"}
    for row, bits in (rows | {"GRPO + contrastive": "111 100"}).items():
        made = {"row": row, "lang": "en", "seed": 0, "golds": [0, 1, 2], "curve": {}}
        outcomes = zip(("en", "vi"), bits.split())
        made["outcomes"] = {lang: dict.fromkeys(METRICS, right) for lang, right in outcomes}
        if row == "GRPO + contrastive":
            made["outcomes"]["en"]["test_suite"] = "110"
            made["outcomes"]["vi"]["test_suite"] = "000"
        (folder / "small" / f"{row}.json").write_text(json.dumps(made))
    (folder / "main.json").write_text(json.dumps(made_cell("GRPO", 0.5)))
    page.write_text("<!-- small -->\n<!-- end -->")
    paper_report.write(folder, page)
    lines = [re.sub(r" \([^)]*\)", "", line) for line in page.read_text().splitlines()]
    assert "| row | seeds | valid | EX | TS | semantic |" in lines
    assert "| warm start | 1 | 33.3 | 33.3 | 33.3 | 33.3 |" in lines
    assert "| GRPO + contrastive | 1 | 66.7 | 66.7 | 33.3 | 66.7 |" in lines
    assert "| GRPO - warm start | +33.3 | +33.3 | +33.3 | +33.3 |" in lines
    expected = {"EX": ("100.0 | 33.3", "+33.3 | -33.3", "+66.7 | +0.0")}
    expected["TS"] = ("66.7 | 0.0", "+0.0 | -66.7", "+33.3 | -33.3")
    for metric, (shares, to_grpo, to_warm_start) in expected.items():
        place = lines.index(f"| {metric} | en | vi |")
        assert lines[place + 5] == f"| GRPO + contrastive | {shares} |"
        assert lines[lines.index(f"| {metric}, difference | en | vi |") + 2 :][:4] == [
            "| warm start - zero-shot | +33.3 | +33.3 |",
            "| GRPO - warm start | +33.3 | +33.3 |",
            f"| GRPO + contrastive - GRPO | {to_grpo} |",
            f"| GRPO + contrastive - warm start | {to_warm_start} |",
        ]


def test_what_an_experiment_trains_and_measures(tmp_path, monkeypatch):
    """The commands of a cell on another model, trained in English and measured in two languages."""
    monkeypatch.chdir(tmp_path)
    commands, rows = [], [("en", "SELECT 1", True, True)]

    def python(*words):
        commands.append(" ".join(words))
        if words[0] == "evaluate.py":
            answers(tmp_path / words[words.index("--save-predictions") + 1], *rows)

    monkeypatch.setattr(paper_table, "python", python)
    monkeypatch.setattr(paper_report, "write", lambda *_: None)
    words = ["--name", "small", "--model", "M", "--zero-shot", "Z", "--data", "D", "--encoder", "E"]
    words += ["--rows", "zero-shot,GRPO", "--languages", "en", "--measure", "en,vi", "--seeds", "1"]
    words += ["--examples", "50", "--options", "--lr 1e-4"]
    assert paper_table.main(words) == 0
    assert sorted(p.name for p in (tmp_path / "docs/results/small").iterdir()) == [
        "GRPO-en-0.json",
        "zero-shot-en-0.json",
    ]
    zero_shot, trained, measured = commands
    assert zero_shot.startswith("evaluate.py --model Z --data D --lang en,vi --limit 0 --encoder E")
    assert "--output runs/paper/small/GRPO-en-0 --model M --data D --encoder E" in trained
    assert "--examples 50" in trained and trained.endswith("--lr 1e-4 --reward semantic=0")
    assert measured.startswith("evaluate.py --run runs/paper/small/GRPO-en-0 --lang en,vi")


def test_rows_can_be_named_in_a_comma_list():
    assert not any("," in row for row in paper_table.ROWS)


def test_curves_are_means_of_parts_over_the_steps_that_have_them(tmp_path):
    """Four steps in two parts; Vietnamese is in the second step and the last two."""
    rows = [{"reward": 1.0}, {"reward": 2.0, "language/vi": 0.5}]
    rows += [{"reward": 3.0, "language/vi": 1.0}, {"reward": 5.0, "language/vi": 2.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = paper_report.curve(path, points=2)
    assert found == {"reward": [1.5, 4.0], "language/vi": [0.5, 1.5]}
    assert paper_report.curve(path, points=4) == {"reward": [1.0, 2.0, 3.0, 5.0]}
