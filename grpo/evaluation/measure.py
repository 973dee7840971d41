"""Measures a policy on questions: its SQL, greedy or voted for, run in the sandbox, compared with
gold, scored by the encoder. `analysis.py` derives tables from the predictions.

    valid       the SQL runs
    execution   its result equals gold's on the given database (EX)
    test_suite  EX, on the database and on every generated variant of it (TS), if requested
    semantic    the calibrated score of question and SQL is above a half: to the contrastive
                encoder the SQL is more likely right than wrong

A question whose gold query fails has no answer to compare with: it is left out of every share and
counted separately. Gold that the sandbox refuses or stops is not broken, and is counted as such.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from grpo.evaluation.vote import vote
from grpo.models import Policy
from grpo.prompt import DEFAULTS, PromptBuilder, PromptSettings
from grpo.rollout import constrained_rows
from grpo.sampler import sample_groups
from sqlenv import (
    Example,
    Execution,
    ExecutionVerifier,
    Sandbox,
    Suite,
    canonical_sql,
    extract_sql,
    load_suite,
    share,
)
from sqlenv.sandbox.sandbox import STOPPED

METRICS = ("valid", "execution", "test_suite", "semantic")
NO_SQL = Execution("no SQL")


@dataclass
class Prediction:
    """The SQL predicted for a question, and how it did.

    Attributes:
        gold_ok: whether gold itself runs.
        semantic: None without an encoder.
        status: of the execution, "no SQL" where there is none to run.
        error: the execution's error message, in one line.
        test_suite: None if not requested.
        part, difficulty: the example's.
        gold_status: of gold's execution; "" in runs of earlier versions.
        gold_arbitrary: whether SQL leaves gold's result on the given database open.
        agreement: the share of the samples that return what ``predicted`` returns; None if greedy.
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
    part: str = ""
    gold_status: str = ""
    gold_arbitrary: bool = False
    difficulty: str = ""
    agreement: float | None = None


def generate(
    policy: Policy,
    prompts: PromptBuilder,
    examples: list[Example],
    *,
    max_new_tokens: int,
    group_size: int = 1,
    temperature: float = 0.0,
    first: int = 0,
    batch_size: int = 32,
    progress: str = "",
) -> list[list[str]]:
    """P groups of completions as text, in the order of ``examples``. Prompts of similar length
    share a batch.

    Args:
        temperature: 0 is greedy; the samples of a question depend on its place alone.
        first: the place of the first question.
        batch_size: completions that are sampled together.
        progress: label of the progress bar; empty for none.
    """
    prompt_ids = [prompts(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompt_ids[i]))
    texts: list = [None] * len(examples)
    batch_size = max(1, batch_size // group_size)  # questions
    for start in tqdm(
        range(0, len(order), batch_size), desc=progress, disable=not progress, unit="batch"
    ):
        batch = order[start : start + batch_size]
        samples = sample_groups(
            policy.model,
            [prompt_ids[i] for i in batch],
            eos_ids=policy.eos_ids,
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=[first + i for i in batch],
            constrained=constrained_rows(policy, prompts, [examples[i] for i in batch], group_size),
        )
        for i, group in zip(batch, samples.completion_ids):
            texts[i] = [policy.decode(completion) for completion in group]
    return texts


def load_suites(sandbox: Sandbox, examples: list[Example]) -> dict[Path, Suite]:
    """The test suite of every database for the gold queries asked on it; built where missing."""
    golds: dict[Path, set[str]] = {}
    for example in examples:
        golds.setdefault(example.db_path, set()).add(example.gold_sql)
    progress = tqdm(golds.items(), desc="test suites", unit="database")
    suites = {}
    for path, queries in progress:
        progress.set_postfix_str(path.stem)
        suites[path] = load_suite(path, queries, sandbox)
    return suites


def score(
    verifier: ExecutionVerifier,
    semantic_score: Callable | None,
    examples: list[Example],
    sqls: Sequence[str | None],
    *,
    suites: dict[Path, Suite] | None = None,
) -> list[Prediction]:
    """Measures the SQL for each example, None where there is none.

    Args:
        semantic_score: an ``encoder.SemanticReward``, or None.
        suites: the test suite of each database, for TS.
    """
    verdicts = verifier.verify(examples, sqls)
    gold, arbitrary = verifier.run_gold(examples), verifier.gold_is_arbitrary(examples)
    semantic: Sequence[bool | None] = [None] * len(examples)
    test_suite: Sequence[bool | None] = [None] * len(examples)
    if semantic_score is not None:
        scores = semantic_score(
            [example.question for example in examples],
            [example.gold_sql for example in examples],
            sqls,
            [verdict.valid for verdict in verdicts],
            [example.db_path for example in examples],
        )
        semantic = [value > 0.5 for value in scores]
    if suites is not None:
        test_suite = verifier.verify_on_suites(examples, verdicts, suites)
    return [
        Prediction(
            example.db_id,
            example.question,
            example.lang,
            gold=example.gold_sql,
            predicted=verdict.sql,
            gold_ok=gold[i].status == "ok",
            valid=verdict.valid,
            execution=verdict.correct,
            test_suite=test_suite[i],
            semantic=semantic[i],
            status=(verdict.execution or NO_SQL).status,
            error=(verdict.execution or NO_SQL).error,
            part=example.part,
            difficulty=example.difficulty,
            gold_status=gold[i].status,
            gold_arbitrary=arbitrary[i],
        )
        for i, (example, verdict) in enumerate(zip(examples, verdicts))
    ]


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    verifier: ExecutionVerifier,
    semantic_score: Callable | None,
    examples: list[Example],
    *,
    max_new_tokens: int,
    settings: PromptSettings = DEFAULTS,
    votes: int = 0,
    temperature: float = 1.0,
    progress: str = "",
    batch_size: int = 32,
    suites: dict[Path, Suite] | None = None,
) -> list[Prediction]:
    """Answers every example and measures the answers.

    Args:
        settings: of the prompts.
        votes: samples that vote for an answer (``grpo/evaluation/vote.py``); 0: it is greedy.
        temperature: of these samples.
        progress, batch_size: see ``generate``.
    """
    verifier.run_gold(examples)  # a damaged database shows before the model has worked for an hour
    prompts = PromptBuilder(policy.tokenizer, settings)
    options = {"max_new_tokens": max_new_tokens, "progress": progress, "batch_size": batch_size}
    if votes:
        options |= {"group_size": votes, "temperature": temperature}
    texts = generate(policy, prompts, examples, **options)  # P x G
    # A chat template may open the reasoning; all prompts of one template end alike.
    asked = policy.tokenizer.decode(prompts(examples[0])) if examples else ""
    sqls = [[extract_sql(text, prompt=asked) for text in group] for group in texts]
    if not votes:
        return score(verifier, semantic_score, examples, [sql for (sql,) in sqls], suites=suites)
    winners = [vote(verifier.sandbox, e.db_path, group) for e, group in zip(examples, sqls)]
    chosen = [winner.sql for winner in winners]
    predictions = score(verifier, semantic_score, examples, chosen, suites=suites)
    for prediction, winner in zip(predictions, winners):
        prediction.agreement = winner.agreement
    return predictions


def measured(predictions: list[Prediction]) -> list[str]:
    """The metrics that these predictions have."""
    return [m for m in METRICS if not predictions or getattr(predictions[0], m) is not None]


def summarize(predictions: list[Prediction]) -> dict:
    """``{lang: {metric: {"value", "low", "high", "n"}}}``: shares with 95 % bootstrap intervals."""
    report = {}
    for lang in dict.fromkeys(prediction.lang for prediction in predictions):
        rows = [row for row in predictions if row.lang == lang and row.gold_ok]
        clusters = [gold_query(row) for row in rows]
        report[lang] = {
            metric: share([getattr(row, metric) for row in rows], clusters=clusters)
            for metric in measured(predictions)
        }
    return report


def gold_query(prediction: Prediction) -> tuple[str, str]:
    """What questions that are not independent share, such as translations of each other."""
    return prediction.db_id, canonical_sql(prediction.gold)


def failed_gold(predictions: list[Prediction]) -> Counter:
    """How many questions of each language are left out because their gold query fails."""
    return Counter(prediction.lang for prediction in predictions if not prediction.gold_ok)


def stopped_gold(predictions: list[Prediction]) -> dict[str, Counter]:
    """Of these, how many in each language the sandbox refuses or stops, by status."""
    counts: dict[str, Counter] = {}
    for prediction in predictions:
        if prediction.gold_status in STOPPED:
            counts.setdefault(prediction.lang, Counter())[prediction.gold_status] += 1
    return counts


def arbitrary_gold(predictions: list[Prediction]) -> Counter:
    """How many questions of each language have a gold query whose result SQL leaves open."""
    return Counter(prediction.lang for prediction in predictions if prediction.gold_arbitrary)


def prediction_lines(predictions: list[Prediction]) -> str:
    """As JSON lines, which ``evaluate.py --predictions`` reads."""
    rows = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    return "".join(row + "\n" for row in rows)


def read_prediction_lines(path: Path) -> list[Prediction]:
    """What ``prediction_lines`` wrote. Only line feeds end a line: texts may have others of the
    characters that ``str.splitlines`` splits at.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Prediction(**json.loads(line)) for line in lines]
