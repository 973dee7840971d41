"""The comparison of techniques at equal seconds: its table by hand, and real cells."""

import json

import pytest

from benchmarks import learning_curve
from benchmarks.learning_curve import PLAIN, SFT, gained


def cell(seed: int, *outcomes: str) -> dict:
    marks = [{"minutes": m, "steps": m, "execution": o} for m, o in enumerate(outcomes)]
    return {"technique": "t", "seed": seed, "marks": marks}


def test_gains_by_hand():
    """Two seeds, four questions. The technique goes from 1/4 to (3 + 4) / 8, so +62.5 points; plain
    from 1/4 to 2/4, so +25. The difference is 0, 0, 1, 0 with the first seed and 0, 1, 0, 1 with
    the second.
    """
    plain = [cell(0, "1000", "1100"), cell(1, "1000", "1010")]
    own = [cell(0, "1000", "1110"), cell(1, "1000", "1111")]
    assert gained(plain, plain, "execution", 1, True) == "+25.0"
    assert gained(own, plain, "execution", 1, False).startswith("+62.5 (+37.5; +0.0 to ")


def test_intervals_are_over_questions_and_seeds():
    """One seed, which gains one of two questions: both drawn twice have probability 1/4. Two seeds,
    of which one gains all and one nothing: so have they, whatever the questions. A third one, which
    plain does not have, counts in the gain alone: 2/3.
    """
    plain = [cell(0, "00", "00")]
    assert gained([cell(0, "00", "10")], plain, "execution", 1, False) == (
        "+50.0 (+50.0; +0.0 to +100.0)"
    )
    plain.append(cell(1, "00", "00"))
    own = [cell(0, "00", "11"), cell(1, "00", "00"), cell(2, "00", "11")]
    assert gained(own, plain, "execution", 1, False) == "+66.7 (+50.0; +0.0 to +100.0)"


def test_cells_are_measured_once_and_the_control_learns_from_gold(tmp_path, monkeypatch, capsys):
    """Half a second of training, tiny steps: real policy, encoder, sandbox and suites."""
    small = "--max-new-tokens 4 --prompts-per-step 2 --group-size 2"
    monkeypatch.setattr(learning_curve, "MARKS", (0.004, 0.008))
    monkeypatch.setattr(learning_curve, "QUESTIONS", 3)
    for name in (PLAIN, SFT):
        monkeypatch.setitem(learning_curve.TECHNIQUES, name, small)
    words = ["--only", f"{PLAIN},{SFT}", "--seeds", "1", "--folder", str(tmp_path)]
    assert learning_curve.main(words) == 0
    shown = capsys.readouterr().out
    cells = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [c["technique"] for c in cells] == [SFT, PLAIN]
    for each in cells:
        steps = [mark["steps"] for mark in each["marks"]]
        assert steps[0] == 0 < steps[1] <= steps[2] and steps[2] < 100
        assert all(len(mark[m]) == 3 for mark in each["marks"] for m in learning_curve.METRICS)
    monkeypatch.setattr(learning_curve, "measure_cell", None)  # would fail if it was called
    assert learning_curve.main(words) == 0 and capsys.readouterr().out == shown
    assert shown.count(f"| {SFT} | 1 |") == 2


@pytest.mark.parametrize(
    "words, message", [(["--only", "magic"], "--only magic"), (["--report"], "no cell of")]
)
def test_bad_input_is_one_line(tmp_path, capsys, words, message):
    assert learning_curve.main([*words, "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
