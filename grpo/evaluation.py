"""Measures a policy on questions: greedy SQL, run in the sandbox, compared with gold, scored by
the encoder.

    valid      the SQL runs
    execution  its result equals gold's on the given database (EX)
    semantic   cosine of question and SQL in the contrastive encoder above the encoder's calibrated
    threshold

A question whose gold query fails has no answer to compare with: it is left out of every share and
counted apart.
"""

from collections import Counter
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from grpo.models import Policy
from grpo.prompt import PromptBuilder
from grpo.rewards import Judge
from grpo.sampler import sample_groups
from sqlenv import Example, canonical_sql, share

METRICS = ("valid", "execution", "semantic")


@dataclass
class Prediction:
    """One question with what the policy answered and how it did; ``gold_ok`` says whether gold
    itself runs.
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


def score(judge: Judge, encoder, examples: list[Example], texts: list[str]) -> list[Prediction]:
    """Judges one completion for each example."""
    judged = judge.judge(examples, texts)
    gold = judge.run_gold(examples)
    semantic: list[bool | None] = [None if encoder is None else False] * len(examples)
    if encoder is not None:
        valid = [i for i, one in enumerate(judged) if one.valid]
        cosines = encoder.similarity(
            [examples[i].question for i in valid], [canonical_sql(judged[i].sql) for i in valid]
        )
        for i, cosine in zip(valid, cosines.tolist()):
            semantic[i] = cosine >= encoder.calibration.threshold
    return [
        Prediction(
            e.db_id,
            e.question,
            e.lang,
            e.gold_sql,
            one.sql,
            expected.status == "ok",
            one.valid,
            one.correct,
            semantic[i],
            one.execution.status if one.execution else "no SQL",
        )
        for i, (e, one, expected) in enumerate(zip(examples, judged, gold))
    ]


def summarize(predictions: list[Prediction]) -> dict:
    """``{lang: {metric: {"value", "low", "high", "n"}}}``: shares with 95 % bootstrap intervals."""
    report = {}
    for lang in dict.fromkeys(one.lang for one in predictions):
        rows = [one for one in predictions if one.lang == lang and one.gold_ok]
        report[lang] = {
            metric: share([getattr(one, metric) for one in rows])
            for metric in METRICS
            if not rows or getattr(rows[0], metric) is not None
        }
    return report


def failed_gold(predictions: list[Prediction]) -> Counter:
    """How many questions of each language were left out because their gold query does not run."""
    return Counter(one.lang for one in predictions if not one.gold_ok)


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    judge: Judge,
    encoder,
    examples: list[Example],
    max_new_tokens: int,
    progress: str = "",
) -> list[Prediction]:
    """Answers every example greedily and judges the answers."""
    texts = generate(
        policy, PromptBuilder(policy.tokenizer), examples, max_new_tokens, progress=progress
    )
    return score(judge, encoder, examples, texts)


def prediction_rows(predictions: list[Prediction]) -> list[dict]:
    """As plain dictionaries, for JSON lines."""
    return [asdict(one) for one in predictions]
