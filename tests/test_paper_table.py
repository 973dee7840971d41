"""The statistics and the bookkeeping of the paper's experiment."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks import paper_cells, paper_data, paper_report, paper_table
from benchmarks.paper_cells import METRICS, cell_line, read_cells, save_cell
from benchmarks.paper_report import means
from benchmarks.paper_table import Cell, cells
from grpo.command_line import parse_config
from sqlenv import EMBEDDED, Sandbox, UserError, load_dataset
from sqlenv.embedded import LANGUAGES

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
DEV = load_dataset(EMBEDDED, "en", "dev")
LENGTH = len(DEV)
GOLDS = [i // 3 for i in range(LENGTH)]  # three questions to each gold query


def make_cell(row: str, share: float, *, seed: int = 0, lang: str = "all") -> dict:
    """The first part of the questions right in every metric and language."""
    right = round(share * LENGTH)
    bits = "1" * right + "0" * (LENGTH - right)
    langs = LANGUAGES if lang == "all" else [lang]
    return {
        "row": row,
        "lang": lang,
        "seed": seed,
        "minutes": 1.5,
        "curve": {"reward/execution": [0.1, 0.2]},
        "golds": GOLDS,
        "outcomes": {lang: dict.fromkeys(METRICS, bits) for lang in langs},
    }


def write_cells(folder: Path, *cells: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells.jsonl").write_text("".join(map(cell_line, cells)))


def test_a_row_is_the_mean_of_its_seeds():
    """(0.25 + 0.75) / 2 = 0.5; with such seeds the interval is at least as wide as they are apart
    half of the time: both drawn alike has probability 1/2, so 2.5 % and 97.5 % are near them.
    """
    seeds = [make_cell("a", 0.25, seed=0), make_cell("a", 0.75, seed=1)]
    share = means(seeds).average("execution")
    assert share["value"] == pytest.approx(0.5, abs=1e-3)
    assert share["low"] < 0.28 and share["high"] > 0.72 and share["n"] == 7 * LENGTH


def test_differences_are_paired():
    """The same questions but 10 % more: with paired draws the gain is sure, and the interval of
    the gain is narrower than that of either row.
    """
    before, after = means([make_cell("a", 0.4)]), means([make_cell("b", 0.5)])
    gained = after.minus(before).average("test_suite")
    alone = before.average("test_suite")
    assert gained["value"] == pytest.approx(0.1, abs=2e-3) and gained["low"] > 0.05
    assert gained["high"] - gained["low"] < alone["high"] - alone["low"]
    same = before.minus(means([make_cell("c", 0.4)])).average("valid")
    assert same["value"] == same["low"] == same["high"] == 0


def test_rows_are_compared_on_the_seeds_that_both_have():
    """0.5 of seed 0 against 0.4 of seed 0, not against the mean with seed 1; an SFT policy, which
    has no curve, is compared with all.
    """
    first = [make_cell("a", 0.5, seed=0)]
    second = [make_cell("b", 0.4, seed=0), make_cell("b", 0.1, seed=1)]
    assert paper_report.same_seeds(first, second) == (first, second[:1])
    untrained = [make_cell("SFT policy", 0.3) | {"curve": {}}]
    assert paper_report.same_seeds(second, untrained) == (second, untrained)


def test_gaps_to_english_are_paired(tmp_path):
    """English 0.4 and all others 0.4, but Vietnamese 0.3 and Chinese 0.5 of the same questions: the
    gap of what is equal is exactly 0, and the others' intervals leave 0 out.
    """
    cell = make_cell("GRPO", 0.4)
    for lang, share in (("vi", 0.3), ("zh", 0.5)):
        cell["outcomes"][lang] = make_cell("", share)["outcomes"][lang]
    results = paper_report.Results(tmp_path)
    results.rows["GRPO"] = [cell]
    heads, row = paper_report.gap_table(results)
    gaps = dict(zip(heads, row))
    assert heads == ("EX - EX of en", "de", "es", "fr", "ja", "vi", "zh")
    assert gaps["de"] == "+0.0 (+0.0 to +0.0)"
    assert gaps["vi"].startswith("-10.") and gaps["zh"].startswith("+10.")
    assert "-" in gaps["vi"].split("to")[1] and "-" not in gaps["zh"]
    alone = means([cell]).select("vi").share("vi", "execution")
    assert alone["value"] == pytest.approx(0.3, abs=2e-3) and alone["n"] == LENGTH


def test_questions_of_one_gold_query_are_drawn_together():
    """The interval over clusters is that of resampling clusters by hand."""
    clusters = np.array(GOLDS)
    cell = make_cell("a", 0.5)
    bits = np.array(list(map(int, cell["outcomes"]["vi"]["valid"])))
    rng = np.random.default_rng(1)
    groups = [bits[clusters == i] for i in range(clusters.max() + 1)]
    draws = []
    for _ in range(500):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        draws.append(np.concatenate(drawn).mean())
    share = means([cell]).share("vi", "valid")
    assert share["high"] - share["low"] == pytest.approx(
        np.percentile(draws, 97.5) - np.percentile(draws, 2.5), rel=0.15
    )


def test_the_parts_of_dev_make_up_all_questions(tmp_path):
    """336 questions each. GRPO has all of *new schema* and of nothing else, which is 100 points
    more than the SFT policy there.
    """
    masks = paper_report.parts()
    assert list(masks) == ["known schema", "new schema", "new words"]
    assert [mask.sum() for mask in masks.values()] == [336, 336, 336] and sum(masks.values()).all()
    start, after = make_cell("SFT policy", 0), make_cell("GRPO", 0)
    bits = "".join(str(int(bit)) for bit in masks["new schema"])
    after["outcomes"] = {lang: dict.fromkeys(METRICS, bits) for lang in LANGUAGES}
    results = paper_report.Results(tmp_path)
    results.rows |= {"SFT policy": [start], "GRPO": [after]}
    table = paper_report.part_table(results, [("GRPO", "SFT policy")], "execution")
    assert table[0] == ("EX", *masks)
    assert [[cell.split(" ")[0] for cell in row[1:]] for row in table[1:]] == [
        ["0.0", "0.0", "0.0"],
        ["0.0", "100.0", "0.0"],
        ["+0.0", "+100.0", "+0.0"],
    ]


def test_cells_are_made_seed_by_seed_and_a_fixed_policy_once():
    assert cells(rows=["SFT policy", "GRPO"], lang="all", seeds=2, experiment="main") == [
        Cell("SFT policy", "all", 0),
        Cell("GRPO", "all", 0),
        Cell("GRPO", "all", 1),
    ]
    assert Cell("GRPO + contrastive", "all", 1).name == "GRPO-contrastive-all-1"
    every = cells(rows=list(paper_table.ROWS), lang="all", seeds=3, experiment="main")
    assert len({cell.name for cell in every}) == len(every)


def test_the_page_is_filled_from_the_cells(tmp_path, capsys):
    """Only what stands between the marks changes; filling twice gives the same page. What has no
    place is printed.
    """
    folder, page = tmp_path / "results", tmp_path / "results.md"
    write_cells(
        folder / "main",
        make_cell("SFT policy", 0.3),
        make_cell("GRPO", 0.4),
        make_cell("GRPO + contrastive", 0.5),
    )
    page.write_text(
        "Text.\n\n<!-- main -->\nold\n<!-- end -->\n\n<!-- languages -->\n<!-- end -->\n"
    )
    paper_report.write(folder, page)
    printed = capsys.readouterr().out
    assert "has no place for 'parts':\n\n| EX | known" in printed and "'main'" not in printed
    first = page.read_text()
    assert first.startswith("Text.\n\n<!-- main -->\n\n| row |") and "\nold\n" not in first
    assert "| GRPO + contrastive | 1 | 50.0 (" in first
    assert "| GRPO | 40.0 (" in first and "| GRPO - SFT policy | +10.0 (" in first
    paper_report.write(folder, page)
    assert page.read_text() == first
    assert (tmp_path / "results-curves.png").stat().st_size > 1000
    (folder / "main/measured.json").write_text('{"dataset": "0123456789abcdef"}')  # another version
    page.write_text("<!-- main -->\nold\n<!-- end -->\n\n<!-- unknown -->\nx\n<!-- end -->")
    paper_report.write(folder, page)
    assert "\nold\n" in page.read_text() and "\nx\n" in page.read_text()
    for left in ("cells.jsonl", "measured.json"):  # no cell yet
        (folder / "main" / left).unlink()
        paper_report.write(folder, page)
        assert "\nold\n" in page.read_text()
    shutil.rmtree(folder / "main")
    paper_report.write(folder, page)
    assert "\nold\n" in page.read_text()


def test_rows_that_are_no_main_rows_are_reported_alone(tmp_path, capsys):
    """On a part of dev, so that there is no table by part of dev either."""
    folder, page = tmp_path / "results", tmp_path / "results.md"
    short = {"golds": [0, 1], "outcomes": {"vi": dict.fromkeys(METRICS, "10")}}
    write_cells(folder / "main", make_cell("300 examples", 0.5), make_cell("weaker encoder", 0.4))
    write_cells(folder / "v1.5", *(make_cell(row, 0) | short for row in ("GRPO", "three passes")))
    page.write_text("<!-- main -->\nold\n<!-- end -->\n<!-- v1.5 -->\nold\n<!-- end -->\n")
    paper_report.write(folder, page)
    assert page.read_text().count("old") == 1 and "| GRPO | 1 | 50.0 (" in page.read_text()
    write_cells(folder / "main", make_cell("GRPO", 0) | short)
    paper_report.write(folder, page)
    assert "old" not in page.read_text() and "known schema" not in capsys.readouterr().out


def test_cells_that_cannot_be_compared_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs/results/mine"
    others = {"golds": [0] * LENGTH}
    write_cells(folder, make_cell("GRPO", 0.5), make_cell("GRPO", 0, seed=1) | others)
    with pytest.raises(UserError, match="mine: has cells of different questions"):
        paper_report.Results(folder)
    write_cells(folder, make_cell("GRPO", 0.5), make_cell("GRPO", 0.5, lang="vi"))
    with pytest.raises(UserError, match=r"mine: has cells of all and of vi languages"):
        paper_report.Results(folder)
    english = {"outcomes": {"en": make_cell("GRPO", 0.5)["outcomes"]["en"]}}
    write_cells(folder, make_cell("GRPO", 0.5), make_cell("GRPO", 0.5, seed=1) | english)
    with pytest.raises(UserError, match="mine: has cells measured in different languages"):
        paper_report.Results(folder)
    write_cells(folder, make_cell("GRPO", 0.5, lang="vi"))
    encoder = make_encoder(tmp_path / "E")
    words = ["--experiment", "mine", "--encoder", encoder, "--lang", "en"]
    assert paper_table.main(words) == 2
    assert "--experiment mine: choose from main, " in capsys.readouterr().err  # mistyped, maybe
    words += ["--data", "D"]
    assert paper_table.main(words) == 2
    assert "mine: has cells, but no measured.json" in capsys.readouterr().err
    measured_with = {"dataset": "", "encoder": paper_cells.files_hash(tmp_path / "E"), "limit": 0}
    options = {"model": paper_cells.files_hash(paper_table.ASSETS / "policy"), "examples": 3000}
    options |= {"options": "", "measure": ""}
    (folder / "measured.json").write_text(json.dumps(measured_with | options))
    assert paper_table.main([*words, "--examples", "5"]) == 2
    assert "another examples (3000, now 5)" in capsys.readouterr().err
    assert paper_table.main(words) == 2
    assert "mine: has cells of --lang vi" in capsys.readouterr().err


def test_ctrl_c_waits_for_the_command_to_save(tmp_path):
    """The command takes a second to save, as a step of training does."""
    saving = (
        "import pathlib, sys, time\n"
        "try:\n    print('started', flush=True), time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1), pathlib.Path('saved').touch()\n"
        "    sys.exit(130)"
    )
    (tmp_path / "command.py").write_text(saving)
    code = (
        "from benchmarks.paper_table import run_python; from sqlenv.errors import exit_code\n"
        "raise SystemExit(exit_code(lambda: run_python('command.py')))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(RESULTS.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (tmp_path / "saved").exists() and process.returncode == 2
    assert "interrupted; the same command goes on from the last checkpoint" in errors


def test_amounts_of_examples_are_compared_with_the_sft_policy(tmp_path):
    """And what differs in nothing but the amount is no ablation."""
    folder, page = tmp_path / "results", tmp_path / "results.md"
    rows = {
        "SFT policy": 0.3,
        "GRPO + contrastive": 0.5,
        "300 examples": 0.35,
        "weaker encoder": 0.4,
    }
    write_cells(folder / "main", *(make_cell(name, share) for name, share in rows.items()))
    page.write_text("<!-- amounts -->\n<!-- end -->\n<!-- ablations -->\n<!-- end -->\n")
    paper_report.write(folder, page)
    first = [line.split(" | ")[0] for line in page.read_text().splitlines() if " - " in line]
    assert [line for line in first if "---" not in line] == [
        "| 300 examples - SFT policy",
        "| GRPO + contrastive - SFT policy",
        "| weaker encoder - GRPO + contrastive",
    ]


def test_unknown_rows_and_languages_are_refused(capsys):
    assert paper_table.main(["--rows", "GRPO,nothing", "--report"]) == 2
    assert "--rows 'nothing': choose from zero-shot, SFT policy" in capsys.readouterr().err
    assert paper_table.main(["--rows", "zero-shot"]) == 2
    assert "--zero-shot" in capsys.readouterr().err
    assert paper_table.main(["--lang", "e n", "--report"]) == 2
    assert "--lang " in capsys.readouterr().err


def write_predictions(path: Path, *rows: tuple[str, str, bool, bool]) -> Path:
    """Writes a predictions file of (language, gold, right, whether gold runs)."""
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
    cell = paper_cells.outcomes(write_predictions(tmp_path / "predictions.jsonl", *rows))
    assert cell["golds"] == [0, 0]
    assert cell["outcomes"] == {
        "en": dict.fromkeys(METRICS, "10"),
        "vi": dict.fromkeys(METRICS, "11"),
    }
    with pytest.raises(UserError, match="languages do not have the same questions"):
        paper_cells.outcomes(write_predictions(tmp_path / "ragged.jsonl", *rows[:-1]))


def test_an_experiment_on_other_models_has_tables_of_its_own(tmp_path):
    """Trained on English alone and measured in two languages, on three questions. The contrastive
    row has EX on all three in English and on one in Vietnamese, two thirds on average, and TS on
    two and none, a third.
    """
    folder, page = tmp_path / "results", tmp_path / "results.md"
    rows = {"zero-shot": "000 000", "SFT policy": "100 100", "GRPO": "110 110"}
    cells = []
    for row, bits in (rows | {"GRPO + contrastive": "111 100"}).items():
        by_lang = zip(("en", "vi"), bits.split())
        outcomes = {lang: dict.fromkeys(METRICS, right) for lang, right in by_lang}
        changes = {"curve": {}, "golds": [0, 1, 2], "outcomes": outcomes}
        cells.append(make_cell(row, 0, lang="en") | changes)
    cells[-1]["outcomes"]["en"]["test_suite"] = "110"
    cells[-1]["outcomes"]["vi"]["test_suite"] = "000"
    write_cells(folder / "small", *cells)
    write_cells(folder / "main", make_cell("GRPO", 0.5))
    page.write_text("<!-- small -->\n<!-- end -->")
    paper_report.write(folder, page)
    lines = [re.sub(r" \([^)]*\)", "", line) for line in page.read_text().splitlines()]
    assert "| row | seeds | valid | EX | TS | semantic |" in lines
    assert "| SFT policy | 1 | 33.3 | 33.3 | 33.3 | 33.3 |" in lines
    assert "| GRPO + contrastive | 1 | 66.7 | 66.7 | 33.3 | 66.7 |" in lines
    assert "| GRPO - SFT policy | +33.3 | +33.3 | +33.3 | +33.3 |" in lines
    expected = {"EX": ("100.0 | 33.3", "+33.3 | -33.3", "+66.7 | +0.0")}
    expected["TS"] = ("66.7 | 0.0", "+0.0 | -66.7", "+33.3 | -33.3")
    for metric, (shares, to_grpo, to_sft) in expected.items():
        place = lines.index(f"| {metric} | en | vi |")
        assert lines[place + 5] == f"| GRPO + contrastive | {shares} |"
        assert lines[lines.index(f"| {metric}, difference | en | vi |") + 2 :][:4] == [
            "| SFT policy - zero-shot | +33.3 | +33.3 |",
            "| GRPO - SFT policy | +33.3 | +33.3 |",
            f"| GRPO + contrastive - GRPO | {to_grpo} |",
            f"| GRPO + contrastive - SFT policy | {to_sft} |",
        ]


def test_what_an_experiment_trains_and_measures(tmp_path, monkeypatch):
    """The commands of a cell on another model, trained in English and measured in two languages."""
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "E")
    commands, rows = [], [("en", "SELECT 1", True, True)]

    def run_python(*words):
        commands.append(" ".join(words))
        if words[0] == "evaluate.py":
            write_predictions(tmp_path / words[words.index("--save-predictions") + 1], *rows)

    monkeypatch.setattr(paper_table, "run_python", run_python)
    monkeypatch.setattr(paper_report, "write", lambda *_: None)
    words = [
        "--experiment",
        "small",
        "--model",
        "M",
        "--zero-shot",
        "Z",
        "--data",
        "D",
        "--encoder",
        "E",
    ]
    words += ["--rows", "zero-shot,GRPO", "--lang", "en", "--measure", "en,vi", "--seeds", "1"]
    words += ["--examples", "50", "--options", "--lr 1e-4"]
    assert paper_table.main(words) == 0
    folder = tmp_path / "docs/results/small"
    assert {path.name for path in folder.iterdir()} == {"cells.jsonl", "measured.json"}
    assert [cell["row"] for cell in read_cells(folder)] == ["GRPO", "zero-shot"]
    zero_shot, trained, measured = commands
    assert zero_shot.startswith("evaluate.py --model Z --data D --lang en,vi --limit 0 --encoder E")
    assert "--output runs/paper/small/GRPO-en-0 --model M --data D --encoder E" in trained
    assert "--examples 50" in trained and trained.endswith("--lr 1e-4 --reward semantic=0")
    assert measured.startswith("evaluate.py --run runs/paper/small/GRPO-en-0 --lang en,vi")


def make_encoder(folder):
    folder.mkdir()
    (folder / "weights").write_text("1")
    return str(folder)


def test_cells_that_were_measured_otherwise_are_not_mixed_with_new_ones(
    tmp_path, monkeypatch, capsys
):
    """With fewer questions (but not before there is a cell), an encoder of other weights, of
    another dataset, and without an encoder, before anything is measured.
    """
    monkeypatch.chdir(tmp_path)
    measured = []
    monkeypatch.setattr(paper_table, "measure", lambda *cell: measured.append(cell))
    monkeypatch.setattr(paper_report, "write", lambda *_: None)
    words = ["--rows", "GRPO", "--seeds", "1", "--encoder", make_encoder(tmp_path / "E")]
    assert paper_table.main([*words, "--limit", "2"]) == paper_table.main(words) == 0
    write_cells(tmp_path / "docs/results/main", make_cell("SFT policy", 0.3))
    assert paper_table.main(words) == 0 and len(measured) == 3
    assert paper_table.main([*words, "--limit", "2"]) == 2
    assert "measured with another limit (0, now 2)" in capsys.readouterr().err
    (tmp_path / "E/weights").write_text("2")
    assert paper_table.main(words) == 2
    assert "docs/results/main: its cells were measured with another encoder" in (
        capsys.readouterr().err
    )
    (tmp_path / "docs/results/main/measured.json").write_text('{"dataset": "0123456789abcdef"}')
    assert paper_table.main(words) == 2
    assert "another dataset (0123456789abcdef, now" in capsys.readouterr().err
    assert paper_table.main([*words, "--encoder", "missing"]) == 2 and len(measured) == 3
    assert "--encoder missing: there is no such directory" in capsys.readouterr().err


def test_a_cell_is_a_line_and_measured_again_replaces_it(tmp_path):
    """Lines are sorted, golds are left out where they say 0, 1, 2, ..., and what is read is what
    was saved, also where a name has a line separator.
    """
    numbered = make_cell("GRPO", 0.5, seed=1) | {"golds": list(range(LENGTH))}
    numbered["curve"] = {"\u2028ä": [0.5]}
    cells = [make_cell("zero-shot", 0.1), numbered, make_cell("GRPO", 0.4)]
    for cell in [make_cell("GRPO", 0.2), *cells]:
        save_cell(tmp_path, cell, lock=tmp_path / "lock")
    assert read_cells(tmp_path) == cells[::-1][:2] + cells[:1]
    lines = (tmp_path / "cells.jsonl").read_text().split("\n")
    assert [json.loads(line)["seed"] for line in lines[:-1]] == [0, 1, 0] and lines[-1] == ""
    assert ["golds" in line for line in lines[:-1]] == [True, False, True]
    assert list(json.loads(lines[0]))[-1] == "outcomes" and "ä" in lines[1]


def test_concurrent_writers_do_not_lose_each_others_cells(tmp_path):
    """Threads, each with the lock file opened anew: the lock excludes them as it does processes."""

    def save(seed: int) -> None:
        save_cell(tmp_path, make_cell("GRPO", 0.5, seed=seed), lock=tmp_path / "lock")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(16)))
    assert [cell["seed"] for cell in read_cells(tmp_path)] == list(range(16))


def test_a_line_that_is_no_cell_is_named(tmp_path):
    (tmp_path / "cells.jsonl").write_text(cell_line(make_cell("GRPO", 0.5)) + "<<<<<<< ours\n")
    with pytest.raises(UserError, match="cells.jsonl, line 2: "):
        read_cells(tmp_path)


def test_the_measured_cells_are_of_rows_that_exist():
    """Each has every question in every metric, and a curve if it was trained."""
    for file in RESULTS.glob("*/cells.jsonl"):
        cells = read_cells(file.parent)
        assert [paper_cells.cell_key(cell) for cell in cells] == sorted(
            {paper_cells.cell_key(cell) for cell in cells}
        )
        for cell in cells:
            trained = paper_table.ROWS[cell["row"]] is not None
            bits = [text for shares in cell["outcomes"].values() for text in shares.values()]
            assert trained == bool(cell["curve"])
            assert {len(text) for text in bits} == {len(cell["golds"])}


@pytest.mark.parametrize("row", [row for row, options in paper_table.ROWS.items() if options])
def test_a_rows_options_are_options_of_train_py(row):
    assert parse_config("", paper_table.ROWS[row])[0] != parse_config("", [])[0]


def test_help_is_shown(capsys):
    """Where the name of a row has a percent sign."""
    with pytest.raises(SystemExit) as ended:
        paper_table.main(["--help"])
    assert ended.value.code == 0 and "gold of 10 %, gold" in " ".join(
        capsys.readouterr().out.split()
    )


def test_rows_can_be_named_in_a_comma_list():
    assert not any("," in row for row in paper_table.ROWS)


def test_the_experiments_are_of_rows_that_exist():
    for experiment in paper_table.EXPERIMENTS.values():
        assert set(experiment.rows.split(",")) <= set(paper_table.ROWS)


def test_options_replace_what_an_experiment_says(tmp_path, monkeypatch):
    """One seed instead of three; its language, its dataset and its options stay."""
    monkeypatch.chdir(tmp_path)
    measured, derived = [], []
    monkeypatch.setattr(paper_table, "measure", lambda *cell: measured.append(cell))
    monkeypatch.setattr(paper_report, "write", lambda *_: None)
    monkeypatch.setattr(paper_data, "derived", lambda name: derived.append(name) or "D")
    words = ["--experiment", "no-gold", "--rows", "consensus,semantic", "--seeds", "1"]
    assert paper_table.main(words) == 0
    assert [cell for cell, _ in measured] == [
        Cell("consensus", "vi", 0, "no-gold"),
        Cell("semantic", "vi", 0, "no-gold"),
    ]
    options = measured[0][1]
    assert derived == ["unseen"] and options.data == "D" and options.options == "--steps 63"


def test_a_poor_database_has_its_first_rows_and_those_they_refer_to(tmp_path):
    """Of four shelves and five books, two rows each: books 1 and 2 stand on shelf 3 and on none, so
    shelves 1, 2 and 3 stay. That book 5 is the sequel of book 2 does not keep it.
    """
    path = tmp_path / "library.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE shelves (id INTEGER PRIMARY KEY, room TEXT);
            CREATE TABLE books (id INTEGER PRIMARY KEY, shelf INTEGER REFERENCES shelves(id),
                                sequel INTEGER REFERENCES books(id));
            INSERT INTO shelves VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
            INSERT INTO books VALUES (1, 3, NULL), (2, NULL, 5), (3, 4, 1), (4, 1, 1), (5, 2, 1);
            """
        )
    paper_data.cut_rows(path, 2)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM shelves").fetchall() == [(1,), (2,), (3,)]
        assert connection.execute("SELECT id FROM books").fetchall() == [(1,), (2,)]


def test_poor_datasets_have_the_same_questions():
    """Those whose gold query returns rows in the poorest; dev is about databases that are whole."""
    few, whole = (
        {split: load_dataset(paper_data.derived(name), "vi", split) for split in ("train", "dev")}
        for name in ("poor-3", "poor-all")
    )
    every = {e.gold_sql for e in load_dataset(EMBEDDED, "vi", "train")}
    questions = [
        [(e.db_id, e.question, e.gold_sql) for e in data["train"]] for data in (few, whole)
    ]
    assert questions[0] == questions[1] and {gold for *_, gold in questions[0]} < every
    with Sandbox() as sandbox:
        for data in (few, whole):
            golds = [(e.db_path, e.gold_sql) for e in data["train"][:200]]
            assert all(run.status == "ok" and run.num_rows for run in sandbox.run_many(golds))
    assert {e.part for e in few["dev"]} == {"new schema", "new words"}
    assert not {e.db_id for e in few["dev"]} & {e.db_id for e in few["train"]}
    assert [e.db_path.read_bytes() for e in few["dev"]] == [
        e.db_path.read_bytes() for e in whole["dev"]
    ]


def test_adaptation_trains_on_one_half_of_the_unseen_databases_questions():
    data = paper_data.derived("unseen")
    halves = [load_dataset(data, "vi", split) for split in ("train", "dev")]
    dev = [e for e in load_dataset(EMBEDDED, "vi", "dev") if e.part != "known schema"]
    assert [len(half) for half in halves] == [336, 336]
    assert [e.question for pair in zip(*halves) for e in pair] == [e.question for e in dev]
    assert {e.db_id for e in halves[0]} == {e.db_id for e in halves[1]}


def test_what_execution_rewarded_is_checked_once_a_group(tmp_path):
    """The first right completion of the first group; none of the second is right. With the test
    suite as reward, its term decides; with neither, the greatest advantage, which is 0 in the last
    group.
    """
    path = tmp_path / "rollouts.jsonl"
    group = {"db_id": "zoo", "question": "?", "lang": "vi", "gold": "SELECT 1", "step": 1}
    right = [
        {"sql": sql, "terms": {"execution": sql != "SELECT 0"}}
        for sql in ("SELECT 0", "SELECT 2", "SELECT 3")
    ]
    wrong = [{"sql": None, "terms": {"execution": 0.0}}]
    suite = [{"sql": "SELECT 4", "terms": {"test_suite": 1.0, "syntax": 1.0}}]
    consensus = [
        {"sql": f"SELECT {number}", "terms": {"consensus": 0.5}, "advantage": advantage}
        for number, advantage in ((5, -0.1), (6, 0.2), (7, 0.2))
    ]
    agreed = [{"sql": "SELECT 8", "terms": {"consensus": 1.0}, "advantage": 0.0}]
    groups = [group | {"completions": c} for c in (right, wrong, suite, consensus, agreed)]
    path.write_text("".join(json.dumps(row) + "\n" for row in groups))
    predictions = list(paper_cells.rewarded(path))
    assert [row["predicted"] for row in predictions] == ["SELECT 2", "SELECT 4", "SELECT 6"]
    assert predictions[0] == {
        "db_id": "zoo",
        "question": "?",
        "lang": "vi",
        "gold": "SELECT 1",
        "predicted": "SELECT 2",
    }


def test_poor_databases_have_a_table(tmp_path):
    """TS 0.4 of GRPO, 0.1 more with the test suite, the contrastive row not measured; of what was
    rewarded 3 in 4 are right by EX on the whole database and half by TS.
    """
    rewarded = {"rewarded": {"execution": 0.75, "test_suite": 0.5}}
    cells = [make_cell("GRPO", 0.4, lang="vi") | rewarded]
    write_cells(tmp_path / "poor-3", *cells, make_cell("GRPO + test suite", 0.5, lang="vi"))
    by_name = {name: paper_report.Results(tmp_path / name) for name in ("poor-3", "poor-10")}
    _, row = paper_report.poor_table(by_name)
    assert row[0] == "3" and row[1].startswith("40.0 (") and row[2] == ""
    assert row[3].startswith("+10.0 (") and row[4:] == ("75.0", "50.0")


def test_what_is_gained_without_gold_is_a_share_of_what_gold_gains(tmp_path):
    """TS 0.4 before, 0.6 with gold (GRPO), 0.5 with consensus: +20, +10, half of it. What consensus
    preferred is right three times in four. A second seed of consensus, with TS 0.7, makes its gain
    +20, but its share of gold's gain is that of the seed that both have. With TS 0.3, gold of 1 %
    loses half of what gold gains.
    """
    start = make_cell("SFT policy", 0.4, lang="vi") | {"curve": {}}
    gold, consensus = (
        make_cell(row, share, lang="vi") | {"rewarded": {"execution": 1.0, "test_suite": right}}
        for row, share, right in (("GRPO", 0.6, 1.0), ("consensus", 0.5, 0.75))
    )
    worse = consensus | make_cell("gold of 1 %", 0.3, lang="vi")
    write_cells(tmp_path, start, gold, consensus, worse)
    _, *rows = paper_report.no_gold_table(paper_report.Results(tmp_path))
    by_name = {name: row for name, *row in rows}
    assert by_name["SFT policy"][1].startswith("40.0 (") and by_name["SFT policy"][2:] == [""] * 4
    assert by_name["GRPO"][3].startswith("+20.0 (")
    assert by_name["GRPO"][4:] == ["100.0 (100.0-100.0)", "100.0"]
    assert by_name["consensus"][2].startswith("+10.0 (")
    assert by_name["consensus"][4].startswith("50.0 (") and by_name["consensus"][5] == "75.0"
    assert re.match(r"-50\.0 \(-\d+\.\d to -\d+\.\d\)$", by_name["gold of 1 %"][4])
    more = consensus | make_cell("consensus", 0.7, seed=1, lang="vi")
    write_cells(tmp_path, start, gold, consensus, more)
    _, *rows = paper_report.no_gold_table(paper_report.Results(tmp_path))
    (row,) = (row for row in rows if row[0] == "consensus")
    assert row[1] == "2" and row[4].startswith("+20.0 (") and row[5].startswith("50.0 (")
    write_cells(tmp_path, start, gold, consensus, consensus | make_cell("semantic", 0.7, lang="vi"))
    _, (_, *differences) = paper_report.no_gold_tables(paper_report.Results(tmp_path))
    assert [row[0] for row in differences] == ["semantic - consensus", "semantic - GRPO"]
    assert [row[3][:6] for row in differences] == ["+20.0 ", "+10.0 "]


def test_curves_are_means_of_parts_over_the_steps_that_have_them(tmp_path):
    """Four steps in two parts; Vietnamese is in the second step and the last two. A KL that was not
    finite is none.
    """
    rows = [{"reward": 1.0, "kl": None}, {"reward": 2.0, "language/vi": 0.5, "kl": None}]
    rows += [{"reward": 3.0, "language/vi": 1.0}, {"reward": 5.0, "language/vi": 2.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert paper_cells.curve(path, points=2) == {"reward": [1.5, 4.0], "language/vi": [0.5, 1.5]}
    assert paper_cells.curve(path, points=4) == {"reward": [1.0, 2.0, 3.0, 5.0]}
