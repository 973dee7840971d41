"""The questions that a run is trained and evaluated on, and the order in which they are drawn."""

import hashlib
import json
import random
from pathlib import Path

import torch

from grpo.config import Config
from grpo.rewards import needs_gold
from sqlenv import (
    Example,
    ExecutionVerifier,
    UserError,
    by_database,
    canonical_sql,
    chosen_languages,
    open_dataset,
)
from sqlenv.dataset import spread
from sqlenv.files import write_json
from sqlenv.sandbox.sandbox import STOPPED

LEAST_CHANCE = 1 / 16  # that a question is asked, however often it taught nothing


def load_questions(
    config: Config,
) -> tuple[list[Example], list[Example], list[Example]]:
    """Training questions, evenly from all languages, validation questions (none without
    ``eval_every``), and the dev questions that have gold SQL.
    """
    gold = {"need_gold": needs_gold(config.reward, config.semantic_target)}
    dataset = open_dataset(config.data, config.questions, **gold)
    langs = chosen_languages(dataset, config.lang, ["train", "dev"])
    train = [example for lang in langs for example in dataset.load(lang, "train")]
    random.Random(config.seed).shuffle(train)
    dev = [e for lang in langs for e in spread(dataset.load(lang, "dev"), config.dev_limit)]
    count = min(config.eval_questions, len(train) // 5) if config.eval_every else 0
    train, validation = split_validation(train, count, config.examples)
    if config.eval_every and not validation:
        raise UserError("--eval-every: too few training questions with SQL to set some apart")
    return train, validation, [example for example in dev if example.gold_sql]


def split_validation(
    pool: list[Example], count: int, limit: int
) -> tuple[list[Example], list[Example]]:
    """Training and validation questions. No gold query is on both sides, in whatever language: a
    question and its translations have the same.

    Args:
        pool: shuffled questions. Validation questions come from its end, which a run with fewer
            questions than it has would not be trained on.
        count: of the validation questions; fewer if the pool has not enough with gold.
        limit: the most training questions.
    """
    if not count:
        return pool[:limit], []
    chosen, validation = set(), []
    for example in reversed(pool):
        key = example.db_id, canonical_sql(example.gold_sql or "")
        if len(validation) == count:
            break
        if example.gold_sql:
            chosen.add(key)
            validation.append(example)
    rest = [e for e in pool if (e.db_id, canonical_sql(e.gold_sql or "")) not in chosen]
    return rest[:limit], validation


def without_result(questions: list[Example], verifier: ExecutionVerifier) -> dict:
    """{"left_out": the indices of questions whose gold query fails or returns no row (empty equals
    empty, so they would reward junk), "stopped": how many of them the sandbox refuses or stops}
    """
    with_gold = [i for i, example in enumerate(questions) if example.gold_sql]
    runs = dict(zip(with_gold, verifier.run_gold([questions[i] for i in with_gold])))
    return {
        "left_out": [i for i, run in runs.items() if run.status != "ok" or not run.num_rows],
        "stopped": sum(run.status in STOPPED for run in runs.values()),
    }


def hash_of(questions: list[Example]) -> str:
    """A hash of everything that is trained on: the questions, their order, their evidence and gold
    SQL, and the descriptions of their databases.
    """
    digest = hashlib.sha256()
    for e in questions:
        row = (e.lang, e.db_id, e.question, e.evidence, e.gold_sql)
        digest.update(json.dumps(row).encode())
    for db_id, (first, *_) in sorted(by_database(questions).items()):
        digest.update(json.dumps([db_id, first.descriptions], sort_keys=True).encode())
    return digest.hexdigest()


def decide_left_out(
    path: Path,
    questions: list[Example],
    verifier: ExecutionVerifier,
    *,
    measured: list[Example],
    resume: bool,
) -> dict:
    """``without_result``, written to ``path``; with ``resume`` what was written there.

    Args:
        measured: the validation and dev questions of the run.

    Raises:
        UserError: it was written for other training questions or others to measure.
    """
    digest = hash_of(questions + measured)
    if not resume or not path.is_file():
        decided = {"hash": digest, **without_result(questions, verifier)}
        write_json(path, decided)
        return decided
    decided = json.loads(path.read_text(encoding="utf-8"))
    if decided["hash"] != digest:
        raise UserError(
            "--resume: --data has other questions than when the run was started "
            f"({path}); start a new run"
        )
    return decided


def mixed_seed(seed: int, position: int) -> int:
    """The seed of a generator for one position of the run with this seed. It has 32 bits, since
    torch's generator on a CPU ignores all others. The multiplier, 2**32 divided by the golden
    ratio, keeps the positions of runs with different seeds apart.

    >>> mixed_seed(0, 7), mixed_seed(1, 7)
    (7, 2654435776)
    """
    return (seed * 2654435769 + position) % 2**32


class QuestionStream:
    """Draws questions epoch by epoch. Each epoch is a new permutation, which depends on the seed
    and the epoch alone.

    A question whose last z groups all had zero variance is asked with the probability
    ``ask_again ** z``, at least 1/16, and passed over otherwise (GRESO, arXiv 2506.02177, here
    with a fixed probability): most of the questions that a policy always or never gets right
    stay so for a while. Whether a question is passed over depends on the seed and its position.

    Attributes:
        cursor: positions passed so far.
        streaks: z of each question that has one, by its index. With ``cursor`` the whole state,
            part of a checkpoint.
    """

    def __init__(self, examples: list[Example], seed: int, *, ask_again: float = 1.0):
        self.examples, self.seed, self.ask_again = examples, seed, ask_again
        self.cursor, self.streaks = 0, {}
        self.drawn: list[int] = []  # indices of the questions that were drawn last

    def draw(self, count: int) -> tuple[list[Example], list[int]]:
        """The next ``count`` questions, and a sampling seed for each of them."""
        self.drawn, seeds = [], []
        while len(seeds) < count:
            epoch, index = divmod(self.cursor, len(self.examples))
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            question = int(torch.randperm(len(self.examples), generator=generator)[index])
            if self.asks(question):
                self.drawn.append(question)
                seeds.append(mixed_seed(self.seed, self.cursor))
            self.cursor += 1
        return [self.examples[question] for question in self.drawn], seeds

    def asks(self, question: int) -> bool:
        """Whether the question at the cursor is asked and not passed over."""
        chance = max(self.ask_again ** self.streaks.get(question, 0), LEAST_CHANCE)
        return random.Random(f"{self.seed} {self.cursor}").random() < chance

    def record(self, zero_variance: list[bool]) -> None:
        """Notes which of the questions drawn last had a zero-variance group."""
        for question, same in zip(self.drawn, zero_variance):
            if same:
                self.streaks[question] = self.streaks.get(question, 0) + 1
            else:
                self.streaks.pop(question, None)
