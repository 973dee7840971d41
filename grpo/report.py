"""Writes a page that shows runs of train.py: curves, sampled groups with their rewards and
advantages, and what changed from before to after. One file, which needs no network.

    python -m grpo.report runs/vi-1               # writes runs/vi-1/report.html
    python -m grpo.report runs/vi-1 runs/vi-2 --output both.html

A run that is still going on can be shown, too. ``train.py`` writes the page at the end of a run and
when it is interrupted.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from grpo.config import read_provenance, read_settings
from grpo.evaluation.measure import Prediction, measured, read_prediction_lines
from grpo.evaluation.report import LABELS, before_after_rows, read_metrics
from grpo.evaluation.rollouts import read_rollouts
from sqlenv.errors import exit_code
from sqlenv.files import write_text
from sqlenv.metrics.hardness import LEVELS, hardness
from sqlenv.options import COUNT, OptionParser, check_writable
from sqlenv.text import KEYWORDS

PAGE = Path(__file__).parent / "evaluation" / "page"
GROUPS = 2000  # shown of a run
# Title, what to expect, and the metrics that are drawn.
CURVES = [
    ("Reward", "Mean of all completions; should rise.", r"reward"),
    (
        "Reward terms",
        "Before weighting. If only others than execution rise, the policy pleases the reward.",
        r"reward/(?!.*_std$).*",
    ),
    (
        "Validation questions",
        "Not trained on. A fall while the reward rises is overfitting.",
        r"eval/(execution|test_suite|pass@\d+)",
    ),
    (
        "KL to the reference (nats per token)",
        "How far the policy is from where it started; rises slowly from 0.",
        r"kl",
    ),
    (
        "Entropy (nats per token)",
        "How varied completions are. Near 0, all of a group are equal.",
        r"entropy",
    ),
    (
        "Share of groups that teach nothing",
        "All their rewards are equal (zero variance): all right, or all wrong alike.",
        r"frac_reward_zero_std",
    ),
    ("Gradient norm", "Before clipping; steady in a run that learns.", r"grad_norm"),
    (
        "Tokens per completion",
        "Steady; growth up to the limit without more reward is a sign of collapse.",
        r"completion_length",
    ),
    (
        "Seconds of a step",
        "Sampling, computing rewards, training.",
        r"(sample|reward|train)_seconds",
    ),
]


def write_report(runs: list[Path], output: Path, groups: int = GROUPS) -> None:
    """Writes the page of one or two runs.

    Args:
        groups: shown of each run; of more, evenly spaced ones.

    Raises:
        UserError: a folder is none of a run, or the page cannot be written.
    """
    shown = [run_data(run, groups) for run in runs]
    keys = list(dict.fromkeys(key for run in shown for row in run["metrics"] for key in row))
    charts = [
        {"title": title, "note": note, "keys": [k for k in keys if re.fullmatch(pattern, k)]}
        for title, note, pattern in CURVES
    ]
    data = {"runs": shown, "charts": charts, "keywords": sorted(map(str.upper, KEYWORDS))}
    # "<" would end the script element, and JSON has another way to write it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    for name, part in (
        ("STYLE", (PAGE / "style.css").read_text(encoding="utf-8")),
        ("SCRIPT", (PAGE / "script.js").read_text(encoding="utf-8")),
        ("DATA", text),
    ):
        page = page.replace(f"/*{name}*/", part)
    write_text(output, page)


def run_data(run: Path, limit: int) -> dict:
    """What the page shows of a run."""
    settings = read_settings("RUN", run)
    rewards = settings.get("reward", {})
    starts = read_provenance(run / "config.json")
    made_by = {
        f"start {n}: {key}": start[key] for n, start in enumerate(starts, 1) for key in start
    }
    paths = [run / f"{when}.jsonl" for when in ("before", "after")]
    before, after = (read_prediction_lines(path) if path.is_file() else [] for path in paths)
    total = sum(1 for _ in read_rollouts(run / "rollouts.jsonl"))
    groups = list(evenly_spaced(read_rollouts(run / "rollouts.jsonl"), total, limit))
    return {
        "name": run.name,
        "settings": [[name, setting_text(value)] for name, value in (settings | made_by).items()],
        "weights": {spec.rpartition(":")[2]: w for spec, w in rewards.items() if w},
        "metrics": read_metrics(run / "metrics.jsonl"),
        "tables": tables(run, before, after),
        "groups": groups,
        "groups_left_out": total - len(groups),
        "questions": [question(old, new) for old, new in zip(before, after) if old.gold_ok],
    }


def setting_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def evenly_spaced(rows: Iterator[dict], total: int, limit: int) -> Iterator[dict]:
    """``limit`` of ``total`` rows."""
    for index, row in enumerate(rows):
        if total <= limit or index * limit // total != (index + 1) * limit // total:
            yield row


def tables(run: Path, before: list[Prediction], after: list[Prediction]) -> list[dict]:
    """The tables of a finished run: by language and part, and by hardness of the gold query."""
    path = run / "summary.json"
    if not (path.is_file() and before and after):
        return []
    summary = json.loads(path.read_text(encoding="utf-8"))
    title = f"in percent, with 95 % intervals; the run took {summary['seconds'] / 60:.1f} minutes"
    hardness_rows = [("hardness", "n", *(LABELS[metric] for metric in measured(before)))]
    for level in LEVELS:
        pairs = [
            (old, new)
            for old, new in zip(before, after)
            if old.gold_ok and hardness(old.gold) == level
        ]
        if pairs:
            cells = (shares(pairs, metric) for metric in measured(before))
            hardness_rows.append((level, str(len(pairs)), *cells))
    return [
        {"title": title, "rows": before_after_rows(summary)},
        {"title": "by hardness of the gold query, before → after", "rows": hardness_rows},
    ]


def shares(pairs: list[tuple[Prediction, Prediction]], metric: str) -> str:
    """The shares before and after, in percent: ``37.4 → 42.5``."""
    before, after = (
        100 * sum(getattr(side, metric) for side in sides) / len(pairs) for sides in zip(*pairs)
    )
    return f"{before:.1f} → {after:.1f}"


def question(before: Prediction, after: Prediction) -> dict:
    """A question and its two answers."""

    def side(prediction: Prediction) -> dict:
        right = prediction.execution and prediction.test_suite is not False
        names = {"sql": prediction.predicted, "error": prediction.error}
        return {"right": right, "status": prediction.status, **names}

    shown = ("lang", "db_id", "question", "gold", "part")
    return {name: getattr(before, name) for name in shown} | {
        "before": side(before),
        "after": side(after),
    }


def run(argv: list[str] | None) -> None:
    parser = OptionParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of two")
    parser.add_argument("--output", help="the page (report.html in the run's folder)")
    parser.add_argument(
        "--groups", type=COUNT, default=GROUPS, help=f"shown of each run ({GROUPS})"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.runs) > 2:
        parser.error("give one run, or two to compare")
    if len(arguments.runs) == 2 and not arguments.output:
        parser.error("two runs need --output")
    output = Path(arguments.output or Path(arguments.runs[0]) / "report.html")
    check_writable("--output", output)
    write_report([Path(name) for name in arguments.runs], output, arguments.groups)
    print(f"wrote {output}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
