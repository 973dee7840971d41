"""Measures a policy on questions: greedy SQL, run in the sandbox, compared with gold, scored by
the encoder. `analysis.py` says more about what comes of it.

    valid       the SQL runs
    execution   its result equals gold's on the given database (EX)
    test_suite  and on every generated variant of the database (TS), where that is asked for
    semantic    to the contrastive encoder it is more likely right than wrong: the calibrated score
                of question and SQL is above a half

A question whose gold query fails has no answer to compare with: it is left out of every share and
counted apart.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from grpo.models import Policy
from grpo.prompt import PromptBuilder
from grpo.rewards import Judge
from grpo.sampler import sample_groups
from sqlenv import (
    Example,
    Execution,
    Sandbox,
    Suite,
    extract_sql,
    is_ordered,
    load_suite,
    results_match,
    share,
    suite_matches,
)

METRICS = ("valid", "execution", "test_suite", "semantic")
NO_SQL = Execution("no SQL")


@dataclass
class Prediction:
    """One question with the SQL that answers it and how that did.

    gold_ok     whether gold itself runs
    test_suite  None if it was not asked for, as ``semantic`` without an encoder
    status      of the execution, "no SQL" where there is none to run
    error       what went wrong in it, in a line
    """

    db_id: str
    question: str
    lang: str
    gold: str
    predicted: str | None
    gold_ok: bool
    valid: bool
    execution: bool
    semantic: bool | None
    status: str
    error: str | None = None
    test_suite: bool | None = None


def generate(
    policy: Policy,
    prompts: PromptBuilder,
    examples: list[Example],
    max_new_tokens: int,
    batch_size: int = 32,
    progress: str = "",
) -> list[str]:
    """Greedy completions as text, in the order of ``examples``. Prompts of similar length share a
    batch.
    """
    tokens = [prompts(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(tokens[i]))
    texts = [""] * len(examples)
    for start in tqdm(
        range(0, len(order), batch_size), desc=progress, disable=not progress, unit="batch"
    ):
        batch = order[start : start + batch_size]
        samples = sample_groups(
            policy.model, [tokens[i] for i in batch], 1, max_new_tokens, policy.eos_ids, 0
        )
        for i, group in zip(batch, samples.tokens):
            texts[i] = policy.tokenizer.decode(group[0], skip_special_tokens=True)
    return texts


def load_suites(sandbox: Sandbox, examples: list[Example]) -> dict[Path, Suite]:
    """The test suite of every database, for the gold queries asked on it; built if need be."""
    golds = defaultdict(set)
    for example in examples:
        golds[example.db_path].add(example.gold_sql)
    progress = tqdm(golds.items(), desc="test suites", unit="database")
    return {path: load_suite(path, queries, sandbox) for path, queries in progress}


def score(
    judge: Judge,
    semantic_score,
    examples: list[Example],
    sqls: Sequence[str | None],
    suites: dict[Path, Suite] | None = None,
) -> list[Prediction]:
    """Judges the SQL for each example, as it stands; None where there is none.

    ``semantic_score`` is an ``encoder.SemanticReward``, or None.
    """
    gold = judge.run_gold(examples)
    jobs = {(e.db_path, sql): None for e, sql in zip(examples, sqls) if sql is not None}
    jobs.update(zip(jobs, judge.sandbox.run_many(jobs)))  # equal queries run once
    found = [jobs.get((e.db_path, sql)) or NO_SQL for e, sql in zip(examples, sqls)]
    valid = [i for i, one in enumerate(found) if one.status == "ok"]
    correct = [
        i for i in valid if results_match(gold[i], found[i], is_ordered(examples[i].gold_sql))
    ]
    semantic = suite_right = None
    if semantic_score is not None:
        scores = semantic_score(
            [example.question for example in examples],
            [example.gold_sql for example in examples],
            sqls,
            [one.status == "ok" for one in found],
            [example.db_path for example in examples],
        )
        semantic = {i for i, one in enumerate(scores) if one > 0.5}
    if suites is not None:
        cases = [(suites[examples[i].db_path], examples[i].gold_sql, sqls[i]) for i in correct]
        suite_right = {i for i, one in zip(correct, suite_matches(judge.sandbox, cases)) if one}
    runs, right = set(valid), set(correct)
    return [
        Prediction(
            example.db_id,
            example.question,
            example.lang,
            gold=example.gold_sql,
            predicted=sqls[i],
            gold_ok=gold[i].status == "ok",
            valid=i in runs,
            execution=i in right,
            test_suite=None if suite_right is None else i in suite_right,
            semantic=None if semantic is None else i in semantic,
            status=found[i].status,
            error=found[i].error,
        )
        for i, example in enumerate(examples)
    ]


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    judge: Judge,
    semantic_score,
    examples: list[Example],
    max_new_tokens: int,
    progress: str = "",
    suites: dict[Path, Suite] | None = None,
) -> list[Prediction]:
    """Answers every example greedily and judges the answers."""
    judge.run_gold(examples)  # a damaged database shows before the model has worked for an hour
    texts = generate(
        policy, PromptBuilder(policy.tokenizer), examples, max_new_tokens, progress=progress
    )
    return score(judge, semantic_score, examples, [extract_sql(text) for text in texts], suites)


def measured(predictions: list[Prediction]) -> list[str]:
    """The metrics that these predictions have."""
    return [m for m in METRICS if not predictions or getattr(predictions[0], m) is not None]


def summarize(predictions: list[Prediction]) -> dict:
    """``{lang: {metric: {"value", "low", "high", "n"}}}``: shares with 95 % bootstrap intervals."""
    report = {}
    for lang in dict.fromkeys(one.lang for one in predictions):
        rows = [one for one in predictions if one.lang == lang and one.gold_ok]
        report[lang] = {
            metric: share([getattr(one, metric) for one in rows])
            for metric in measured(predictions)
        }
    return report


def failed_gold(predictions: list[Prediction]) -> Counter:
    """How many questions of each language were left out because their gold query does not run."""
    return Counter(one.lang for one in predictions if not one.gold_ok)


def prediction_rows(predictions: list[Prediction]) -> list[dict]:
    """As plain dictionaries, for JSON lines."""
    return [asdict(one) for one in predictions]
