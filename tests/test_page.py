"""The page of a run, in a real browser where there is one."""

import json
import time
from pathlib import Path

import pytest
from browser_kit import CHROMIUM, Browser

from grpo import report
from grpo.config import Config
from grpo.evaluation.measure import Prediction, prediction_lines, read_prediction_lines
from grpo.evaluation.rollouts import append_rollouts
from grpo.run import summary_of
from sqlenv import UserError

in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
GOLD = "SELECT name FROM singer WHERE age > 30"
EVIL = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>"


def completion(reward: float, advantage: float, **more) -> dict:
    """Right if the reward is 1 or more, and "semantic" agrees, unless told otherwise."""
    right = reward >= 1
    return {
        "text": GOLD if right else "SELECT name FROM singer WHERE age > 3",
        "sql": GOLD if right else "SELECT name FROM singer WHERE age > 3",
        "status": "ok",
        "error": None,
        "rows": [["Bob"], ["Cid"]],
        "num_rows": 2 if right else 7,
        "terms": {"execution": float(right), "semantic": 0.9 if right else 0.2},
        "reward": reward,
        "advantage": advantage,
        "logprob": -3.25,
        "tokens": 12,
        "finished": True,
    } | more


def group(step: int, completions: list[dict], **more) -> dict:
    return {
        "step": step,
        "lang": "en",
        "db_id": "concerts",
        "question": "Who is older than 30?",
        "gold": GOLD,
        "gold_rows": [["Bob"], ["Cid"]],
        "gold_num_rows": 2,
        "completions": completions,
    } | more


def groups() -> list[dict]:
    """One with signal, in which two completions are wrong; one without; one in Vietnamese whose
    texts attack the page, and in which semantic and execution disagree; a truncated one.
    """
    invalid = {"status": "error", "error": "no such column: agee", "sql": "SELECT agee FROM singer"}
    return [
        group(1, [completion(0.1, -0.4), completion(1.2, 0.7), completion(0.2, -0.3)]),
        group(1, [completion(0.1, 0.0), completion(0.1, 0.0)]),
        group(
            2,
            [
                completion(0.3, 0.1, terms={"execution": 0.0, "semantic": 0.9}),
                completion(0.1, -0.1, text=EVIL, rows=[[EVIL]], **invalid),
            ],
            lang="vi",
            db_id="trường học",
            question=EVIL,
        ),
        group(2, [completion(1.2, 0.5), completion(0.1, -0.5, finished=False)]),
    ]


def predictions(*right: bool) -> list[Prediction]:
    return [
        Prediction(
            db_id="concerts",
            question=f"Question {i}?",
            lang="en",
            gold=GOLD,
            predicted=GOLD if ok else "SELECT 1",
            gold_ok=True,
            valid=True,
            execution=ok,
            semantic=ok,
            status="ok",
            test_suite=ok,
        )
        for i, ok in enumerate(right)
    ]


def make_run(folder: Path, rows: list[dict]) -> Path:
    """The folder of a finished run: of four answers one became right and one wrong."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(Config().to_dict()))
    names = (
        "reward",
        "reward/execution",
        "reward/execution_std",
        "kl",
        "entropy",
        "sample_seconds",
    )
    metrics = [{"step": s} | {name: s / 10 for name in names} for s in range(1, 30)]
    metrics[3]["kl"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    append_rollouts(folder / "rollouts.jsonl", rows)
    sides = predictions(True, True, False, False), predictions(True, False, True, False)
    for name, side in zip(("before", "after"), sides):
        (folder / f"{name}.jsonl").write_text(prediction_lines(side))
    (folder / "summary.json").write_text(json.dumps(summary_of(*sides, seconds=90)))
    return folder


@pytest.fixture
def page(tmp_path) -> Path:
    run = make_run(tmp_path / "vi-1", groups())
    assert report.main([str(run)]) == 0
    return run / "report.html"


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser
        assert browser.complaints == []


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.innerText)")


def choose(browser: Browser, form: str, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const select = document.getElementById('{form}').elements['{name}'];"
        f"select.value = '{value}'; select.dispatchEvent(new Event('change')); }})()"
    )


def test_predictions_are_read_as_they_were_written(tmp_path):
    """With characters that end a line elsewhere, but not in JSON lines."""
    written = predictions(True, False)
    written[0].question = "one\u2028two\x85three\x0bfour\nfive\rsix"
    (tmp_path / "before.jsonl").write_text(prediction_lines(written), encoding="utf-8")
    assert read_prediction_lines(tmp_path / "before.jsonl") == written


@in_browser
def test_a_group_shows_who_was_rewarded_and_why(page, browser):
    """Ranked by advantage; 30 in gold is 3 in the wrong query, and marked."""
    browser.open(page)
    assert "1 × execution + 0.1 × syntax" in texts(browser, "#groups p")[0]
    first = texts(browser, "#group-list article:first-child .completion")
    assert [text.split("\n")[0].split(" 12 tokens")[0] for text in first] == [
        *("1. right", "2. wrong result", "3. wrong result")
    ]
    assert "+0.70" in first[0] and "1.20" in first[0] and "-0.40" in first[2]
    assert "0.3 × 0.90" in first[0] and "0.3 × 0.20" in first[1]
    marked = texts(browser, "#group-list article:first-child .completion ins")
    assert marked == ["3", "3"]
    assert "1 of 3 right" in texts(browser, "#group-list article:first-child .tag")
    choose(browser, "group-filter", "outcome", "")
    tags = texts(browser, ".tag")
    assert tags.count("teaches nothing: all rewards equal") == 1
    assert tags.count("semantic disagrees") == 1


@in_browser
def test_groups_with_some_right_are_shown_first_and_filters_count(page, browser):
    browser.open(page)
    assert texts(browser, "#group-count") == ["2 of 4 groups"]
    outcomes = texts(browser, "#group-filter select[name=outcome] option")
    assert outcomes[:3] == ["all", "some right (2)", "none right (2)"]
    choose(browser, "group-filter", "outcome", "all right")
    assert texts(browser, "#group-count") == ["0 of 4 groups: none matches all filters"]


@in_browser
def test_bars_have_one_scale_on_the_whole_page(page, browser):
    """The largest reward of the page is 1.2, so one of 0.1 has a twelfth of its bar's length; the
    largest advantage is 0.7, and one of -0.5 has five sevenths of half an axis.
    """
    browser.open(page)
    widths = browser.run(
        "[...document.querySelectorAll('#group-list article:last-child .total i')]"
        ".map((e) => parseFloat(e.style.width))"
    )
    assert widths == pytest.approx([100, 50 * 5 / 7, 100 / 12, 50 * 5 / 7], abs=0.01)


@in_browser
def test_equal_completions_are_shown_once(tmp_path, browser):
    """Two that are right and two that are not, one of which has another reward."""
    row = [completion(1.2, 0.5), completion(0.1, -0.6), completion(1.2, 0.5), completion(0.2, -0.4)]
    run = make_run(tmp_path / "run", [group(1, row)])
    assert report.main([str(run)]) == 0
    browser.open(run / "report.html")
    shown = [text.split("\n")[0] for text in texts(browser, "#group-list .completion")]
    assert [text.split(" 12 tokens")[0] for text in shown] == [
        *("1. right 2 times,", "2. wrong result", "3. wrong result")
    ]


@in_browser
def test_text_from_models_and_data_is_only_text(page, browser):
    browser.open(page)
    assert browser.run("document.title") == "vi-1"
    choose(browser, "group-filter", "outcome", "")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert EVIL in texts(browser, "#group-list h3")


@in_browser
@pytest.mark.parametrize(
    "name, value, count",
    [
        ("outcome", "some right", 2),
        ("outcome", "none right", 2),
        ("outcome", "all right", 0),
        ("teaches", "nothing", 1),
        ("teaches", "something", 3),
        ("outcome", "semantic disagrees with execution", 1),
        ("outcome", "truncated", 1),
        ("outcome", "some do not run", 1),
        ("language", "vi", 1),
        ("database", "concerts", 3),
        ("step", "1", 2),
    ],
)
def test_groups_are_filtered(page, browser, name, value, count):
    browser.open(page)
    choose(browser, "group-filter", "outcome", "")
    assert texts(browser, "#group-count") == ["4 of 4 groups"]
    choose(browser, "group-filter", name, value)
    assert texts(browser, "#group-count")[0].startswith(f"{count} of 4 groups")
    assert len(texts(browser, "#group-list article")) == count


@in_browser
@pytest.mark.parametrize("change", ["became right", "became wrong", "stayed right", "stayed wrong"])
def test_what_changed_is_shown_question_by_question(page, browser, change):
    browser.open(page)
    choose(browser, "question-filter", "change", change)
    assert texts(browser, "#question-count") == ["1 of 4 questions"]
    (card,) = texts(browser, "#question-list article")
    before, after = change in ("became wrong", "stayed right"), change[-5:] == "right"
    assert ("before: right" in card, "after: right" in card) == (before, after)


@in_browser
def test_tables_and_curves(page, browser):
    """The table of before and after has 50 % and 50 %; a chart says where its curve goes."""
    browser.open(page)
    table = texts(browser, "#tables table")[0]
    assert "EX" in table and "50.0" in table and "+0.0" in table
    labels = browser.run("[...document.querySelectorAll('svg')].map((s) => s.ariaLabel)")
    assert "Reward, from 0.1 at first to 2.9 in the end" in labels
    assert len(labels) == 5  # those of metrics that the run has
    assert "group_size" in texts(browser, "#configs")[0]


@in_browser
def test_the_keyboard_moves_between_cards(page, browser):
    browser.open(page)
    focused = "[...document.querySelectorAll('article')].indexOf(document.activeElement)"
    seen = []
    for key in "jjk":
        browser.press(key)
        seen.append(browser.run(focused))
    assert seen == [0, 1, 0]


@in_browser
def test_nothing_is_wider_than_a_phone(page, browser):
    browser.resize(360)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= 360


@in_browser
def test_two_runs_side_by_side(tmp_path, browser):
    runs = [str(make_run(tmp_path / name, groups())) for name in ("vi-1", "vi-2")]
    assert report.main([*runs, "--output", str(tmp_path / "both.html")]) == 0
    browser.open(tmp_path / "both.html")
    choose(browser, "group-filter", "outcome", "")
    assert texts(browser, "#group-count") == ["8 of 8 groups"]
    choose(browser, "group-filter", "run", "B")
    assert texts(browser, "#group-count") == ["4 of 8 groups"]
    assert any(
        "reward/execution" not in legend and "A" in legend for legend in texts(browser, ".legend")
    )


@in_browser
def test_many_groups_open_quickly(tmp_path, browser):
    """2,000 groups of eight, two seconds on a machine that does nothing else; here with room."""
    row = [completion(0.1 * i, 0.1 * i - 0.4) for i in range(8)]
    run = make_run(tmp_path / "large", [group(s // 16 + 1, row) for s in range(2000)])
    assert report.main([str(run)]) == 0
    start = time.monotonic()
    browser.open(run / "report.html")
    print(f"{time.monotonic() - start:.2f} s")
    assert texts(browser, "#group-count") == ["2000 of 2000 groups"]
    assert len(texts(browser, "#group-list article")) == 20
    browser.run("document.getElementById('group-more').click()")
    assert len(texts(browser, "#group-list article")) == 40


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])


def test_a_run_that_is_going_on_is_shown(tmp_path):
    """No measurement after training, no summary, half a line of each file."""
    run = make_run(tmp_path / "run", groups())
    for name in ("after.jsonl", "summary.json"):
        (run / name).unlink()
    for name in ("rollouts.jsonl", "metrics.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 3')
    assert report.main([str(run)]) == 0
    (shown,) = data_of(run / "report.html")["runs"]
    assert (len(shown["groups"]), shown["tables"], shown["questions"]) == (4, [], [])


def test_of_many_groups_evenly_spaced_ones_are_shown(tmp_path):
    run = make_run(tmp_path / "run", [group(step, []) for step in range(100)])
    assert report.main([str(run), "--groups", "10"]) == 0
    (shown,) = data_of(run / "report.html")["runs"]
    steps = [row["step"] for row in shown["groups"]]
    assert len(steps) == 10 and shown["groups_left_out"] == 90
    assert {b - a for a, b in zip(steps, steps[1:])} == {10}


@pytest.mark.parametrize(
    "words, message",
    [
        (["{tmp}/none"], "none: .*config.json does not exist; give the folder of a run"),
        (["{tmp}/a", "{tmp}/b"], "two runs need --output"),
        (["a", "b", "c", "--output", "x"], "give one run, or two"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, words, message):
    assert report.main([word.format(tmp=tmp_path) for word in words]) == 2
    with pytest.raises(UserError, match=message):
        raise UserError(capsys.readouterr().err)
