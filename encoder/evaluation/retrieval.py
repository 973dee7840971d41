"""The rank of gold among hard negatives, the other SQL of its database, and other questions.

GRPO compares the completions of a group, so these metrics measure order: how often gold scores
strictly above a rival, and its rank among all of them. SQL too long to be read to its end counts as
the lowest cosine, -1, because the reward gives it 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from encoder.batches import KINDS, Entry, hard_negatives
from encoder.model import ContrastiveEncoder
from encoder.text import sql_text
from sqlenv import Mutant
from sqlenv.dataset import spread
from sqlenv.metrics.bootstrap import resampled_means, summary

BLOCK = 256  # texts embedded between two updates of the progress bar


@dataclass(frozen=True)
class Question:
    """A question, its gold SQL and rivals of that, all SQL as the encoder reads it.

    Attributes:
        entry: the entry of the gold SQL, shared with translations of the question.
        others: gold SQL of other questions on the database.
    """

    text: str
    lang: str
    entry: Entry
    gold: str
    hard_negatives: tuple[Mutant, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def cluster(self) -> tuple[str, str]:
        """Equal for translations of each other, which the bootstrap draws together."""
        return self.entry.db_id, self.entry.gold


def choose_questions(
    entries: list[Entry], langs: Sequence[str], *, limit: int, with_schema: bool
) -> list[Question]:
    """`limit` questions of each language (0: all), evenly spread over the entries.

    The data may have several golds for one question: none of them is a rival of another.
    """
    gold = [_text(entry.gold, entry, with_schema) for entry in entries]
    golds, answers = defaultdict(list), defaultdict(set)
    for entry, sql in zip(entries, gold):
        golds[entry.db_id].append(sql)
        for _, question in entry.questions:
            answers[entry.db_id, question].add(sql)
    negatives: dict[int, list[Mutant]] = {}
    chosen = []
    for lang in langs:
        asked = [
            (i, text) for i, e in enumerate(entries) for tag, text in e.questions if tag == lang
        ]
        for i, question in spread(asked, limit):
            entry = entries[i]
            if i not in negatives:
                negatives[i] = _distinct_negatives(entry, with_schema)
            right = answers[entry.db_id, question]
            hard = tuple(negative for negative in negatives[i] if negative.sql not in right)
            others = tuple(sql for sql in golds[entry.db_id] if sql not in right)
            chosen.append(Question(question, lang, entry, gold[i], hard, others))
    return chosen


def _text(sql: str, entry: Entry, with_schema: bool) -> str:
    return sql_text(sql, entry.schema, with_schema=with_schema)


def _distinct_negatives(entry: Entry, with_schema: bool) -> list[Mutant]:
    """The hard negatives of an entry as the encoder reads them, equal texts once."""
    kinds: dict[str, str] = {}
    for negative in hard_negatives(entry.gold, entry.schema):
        kinds.setdefault(_text(negative.sql, entry, with_schema), negative.kind)
    return [Mutant(sql, kind) for sql, kind in kinds.items()]


class Embeddings:
    """Embeddings of questions and SQL, each distinct text embedded once, with a progress bar.

    Args:
        encoder: what embeds them.
        questions: all questions that `cosines` will be called with.
        sqls: all SQL texts that `cosines` will be called with.
    """

    def __init__(self, encoder: ContrastiveEncoder, questions: Iterable[str], sqls: Iterable[str]):
        self.rows: dict[str, dict[str, int]] = {}
        self.matrix: dict[str, Tensor] = {}  # (N, D) float32
        for kind, texts in (("query", questions), ("sql", sqls)):
            # Texts of similar length go together, so that there is little padding.
            distinct = sorted(set(texts), key=lambda text: (len(text), text))
            self.rows[kind] = {text: row for row, text in enumerate(distinct)}
            blocks = [distinct[i : i + BLOCK] for i in range(0, len(distinct), BLOCK)]
            parts = []
            with tqdm(total=len(distinct), desc={"query": "questions", "sql": "SQL"}[kind]) as bar:
                for block in blocks:
                    parts.append(encoder.embed(block, kind).float().cpu())
                    bar.update(len(block))
            self.matrix[kind] = torch.cat(parts) if parts else torch.zeros(0, 1)
        fits = encoder.fits(list(self.rows["sql"]))
        self.too_long = torch.tensor([not fit for fit in fits], dtype=torch.bool)  # (N,)

    def cosines(self, question: str, texts: Sequence[str], kind: str = "sql") -> Tensor:
        """Cosines of a question with SQL texts, or with questions, float32[len(texts)]."""
        rows = [self.rows[kind][text] for text in texts]
        asked = self.matrix["query"][self.rows["query"][question]]  # (D,)
        # Row by row: a matrix product may give equal embeddings different cosines.
        cosines = (self.matrix[kind][rows] * asked).sum(dim=-1)
        return cosines.masked_fill(self.too_long[rows], -1.0) if kind == "sql" else cosines

    def is_too_long(self, sql: str) -> bool:
        """Whether the encoder cannot read the SQL to its end."""
        return bool(self.too_long[self.rows["sql"][sql]])


def hard_negative_metrics(question: Question, embeddings: Embeddings) -> dict[str, float]:
    """How often gold scores above its hard negatives. Empty if there are none.

    With gold at 0.5, "limit" at 0.4 and 0.6, "sort" at 0.5: limit 0.5, sort 0, all 0.

    Returns:
        {kind: share of the hard negatives of that kind that gold scores above,
        "all_hard_negatives": 1.0 if it scores above each of them, or else 0.0}
    """
    if not question.hard_negatives:
        return {}
    texts = [question.gold, *(negative.sql for negative in question.hard_negatives)]
    gold, *rivals = embeddings.cosines(question.text, texts).tolist()
    wins = defaultdict(list)
    for negative, rival in zip(question.hard_negatives, rivals):
        wins[negative.kind].append(gold > rival)
    shares = {kind: sum(outcomes) / len(outcomes) for kind, outcomes in wins.items()}
    return {**shares, "all_hard_negatives": float(gold > max(rivals))}


def retrieval_metrics(question: Question, embeddings: Embeddings) -> dict[str, float]:
    """The rank of gold among the SQL of its database. Empty if there is no other.

    A tie counts against gold. With gold at 0.5 and others at 0.9, 0.5 and 0.1, its rank is 3:
    other_sql 1/3, mrr 1/3, recall@1 0.

    Returns:
        {"other_sql": share of the others that gold scores above, "mrr": 1 / rank, "recall@1": 1.0
        if its rank is 1, or else 0.0}
    """
    if not question.others:
        return {}
    cosines = embeddings.cosines(question.text, [question.gold, *question.others])
    above = int((cosines[1:] >= cosines[0]).sum())
    return {
        "other_sql": 1 - above / len(question.others),
        "mrr": 1 / (1 + above),
        "recall@1": float(above == 0),
    }


def english_questions(entries: list[Entry]) -> dict[str, dict[str, set[str]]]:
    """{database: {English question: its golds}}"""
    golds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for entry in entries:
        for lang, question in entry.questions:
            if lang == "en":
                golds[entry.db_id][question].add(entry.gold)
    return golds


def english_metrics(
    question: Question, english: dict[str, dict[str, set[str]]], embeddings: Embeddings
) -> dict[str, float]:
    """Whether a question is closer to its English translation than to other English questions.

    Returns:
        {"english_recall@1": 1.0 if an English question with the same gold is closer than all others
        on the database, or else 0.0}. Empty for an English question, or if there is no translation,
        or no other English question.
    """
    golds_of = english.get(question.entry.db_id, {})
    same = torch.tensor([question.entry.gold in golds for golds in golds_of.values()])
    if question.lang == "en" or not golds_of or same.all() or not same.any():
        return {}
    cosines = embeddings.cosines(question.text, list(golds_of), "query")
    return {"english_recall@1": float(cosines[same].max() > cosines[~same].max())}


@dataclass(frozen=True)
class Mean:
    """A mean over n questions, and the means of resamples of them, (RESAMPLES,)."""

    value: float
    resampled: np.ndarray
    n: int

    def interval(self) -> dict:
        """{"value", "low", "high", "n"} with the 95 % interval of the resamples."""
        return summary(self.value, self.resampled, self.n)


def mean_of(means: Sequence[Mean], n: int) -> Mean:
    """The unweighted mean of means, whatever the n of each. Resamples from which a small group is
    missing have none (NaN), and do not count for the interval.
    """
    resampled = np.mean([mean.resampled for mean in means], axis=0)
    return Mean(float(np.mean([mean.value for mean in means])), resampled, n)


def summarize(
    questions: Sequence[Question], metrics: Sequence[dict[str, float]], seed: int
) -> dict:
    """Means of the questions' metrics, with intervals.

    Args:
        questions: N questions.
        metrics: the metrics of each; a question counts only where it has the metric.
        seed: of the bootstrap.
    Returns:
        report[lang or "average"][metric] = {"value", "low", "high", "n"}. "mean_over_kinds" is the
        unweighted mean of the kinds of hard negatives, and "average" that of the languages.
    """
    rows = [(q, name, value) for q, row in zip(questions, metrics) for name, value in row.items()]
    if not rows:
        return {}
    groups = [(question.lang, name) for question, name, _ in rows]
    values = np.array([value for _, _, value in rows])
    clusters = [question.cluster for question, _, _ in rows]
    values_of = defaultdict(list)
    for group, value in zip(groups, values):
        values_of[group].append(value)
    table: dict[str, dict[str, Mean]] = defaultdict(dict)
    for (lang, name), resampled in resampled_means(
        values[:, None], groups, clusters, seed=seed
    ).items():
        members = values_of[lang, name]
        table[lang][name] = Mean(float(np.mean(members)), resampled[:, 0], len(members))
    for row in table.values():
        kinds = [row[kind] for kind in KINDS if kind in row]
        if kinds:
            row["mean_over_kinds"] = mean_of(kinds, row["all_hard_negatives"].n)
    langs = list(table)
    for name in dict.fromkeys(name for lang in langs for name in table[lang]):
        means = [table[lang][name] for lang in langs if name in table[lang]]
        table["average"][name] = mean_of(means, sum(mean.n for mean in means))
    return {
        lang: {name: mean.interval() for name, mean in row.items()} for lang, row in table.items()
    }
