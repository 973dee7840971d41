"""Gold among its rivals: near misses, the other SQL of its database, and other questions.

A reward is worth as much as the order it puts things in, so what is measured here is order: how
often gold scores strictly above a rival, and where it stands among all of them. SQL too long to be
read to its end counts as the lowest cosine, -1, as the reward gives it 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from encoder.negatives import KINDS, Mutant, hard_negatives
from encoder.pairs import Entry
from encoder.text import sql_text
from sqlenv.metrics.bootstrap import resampled_means, summary

BLOCK = 256  # texts embedded between two moves of the progress bar


@dataclass(frozen=True)
class Question:
    """A question, its gold SQL and that one's rivals, all SQL as the encoder reads it."""

    text: str
    lang: str
    entry: Entry  # shared with its translations
    gold: str
    near_misses: tuple[Mutant, ...] = ()
    others: tuple[str, ...] = ()  # gold of other questions on the database

    @property
    def cluster(self) -> tuple[str, str]:
        """What translations of each other share: the bootstrap draws them together."""
        return self.entry.db_id, self.entry.gold


def spread(items: Sequence, count: int) -> list:
    """`count` items at even distances; all of them if there are not so many, or it is 0.

    >>> spread("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if not 0 < count < len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def choose_questions(
    entries: list[Entry], langs: Sequence[str], limit: int, with_schema: bool
) -> list[Question]:
    """`limit` questions of each language (0: all), evenly spread over the entries.

    A question may stand in the data with several golds: none of them is a rival of another.
    """

    def text(sql: str, entry: Entry) -> str:
        return sql_text(sql, entry.schema if with_schema else None)

    gold = [text(entry.gold, entry) for entry in entries]
    golds, answers = defaultdict(list), defaultdict(set)
    for entry, sql in zip(entries, gold):
        golds[entry.db_id].append(sql)
        for _, question in entry.questions:
            answers[entry.db_id, question].add(sql)
    misses: dict[int, list[Mutant]] = {}
    chosen = []
    for lang in langs:
        asked = [(i, q) for i, e in enumerate(entries) for one, q in e.questions if one == lang]
        for i, question in spread(asked, limit):
            entry = entries[i]
            if i not in misses:
                kinds: dict[str, str] = {}  # of texts: two near misses may read alike
                for miss in hard_negatives(entry.gold, entry.schema):
                    kinds.setdefault(text(miss.sql, entry), miss.kind)
                misses[i] = [Mutant(sql, kind) for sql, kind in kinds.items()]
            right = answers[entry.db_id, question]
            near = tuple(miss for miss in misses[i] if miss.sql not in right)
            others = tuple(sql for sql in golds[entry.db_id] if sql not in right)
            chosen.append(Question(question, lang, entry, gold[i], near, others))
    return chosen


class Embeddings:
    """Questions and SQL texts, each distinct one embedded once, with a progress bar.

    Args:
        encoder: a ContrastiveEncoder.
        questions, sqls: all texts that `cosines` will be asked for.
    """

    def __init__(self, encoder, questions: Iterable[str], sqls: Iterable[str]):
        self.rows: dict[str, dict[str, int]] = {}
        self.matrix: dict[str, Tensor] = {}  # (N, D) float32
        for kind, texts in (("query", questions), ("sql", sqls)):
            # Texts of like lengths together: little is spent on padding.
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
        """Cosine of a question with SQL texts, or with questions, float32[len(texts)]."""
        places = [self.rows[kind][text] for text in texts]
        # A sum row by row: equal embeddings give equal cosines, which a matrix product does not.
        asked = self.matrix["query"][self.rows["query"][question]]  # (D,)
        found = (self.matrix[kind][places] * asked).sum(dim=-1)
        return found.masked_fill(self.too_long[places], -1.0) if kind == "sql" else found

    def is_too_long(self, sql: str) -> bool:
        return bool(self.too_long[self.rows["sql"][sql]])


def near_miss_metrics(question: Question, embeddings: Embeddings) -> dict[str, float]:
    """{kind: share of the near misses of that kind that gold scores above, "all_near_misses":
    1.0 if it scores above each of them}; empty if there are none.

    With gold at 0.5, "limit" at 0.4 and 0.6, "sort" at 0.5: limit 0.5, sort 0, all 0.
    """
    if not question.near_misses:
        return {}
    texts = [question.gold, *(miss.sql for miss in question.near_misses)]
    gold, *rivals = embeddings.cosines(question.text, texts).tolist()
    won = defaultdict(list)
    for miss, rival in zip(question.near_misses, rivals):
        won[miss.kind].append(gold > rival)
    shares = {kind: sum(ones) / len(ones) for kind, ones in won.items()}
    return {**shares, "all_near_misses": float(gold > max(rivals))}


def retrieval_metrics(question: Question, embeddings: Embeddings) -> dict[str, float]:
    """Where gold stands among the SQLs of its database; empty if it is the only one.

    "other_sql": the chance that it scores above one of the others drawn at random; "mrr": 1 / its
    rank; "recall@1": 1.0 if it is first. A tie counts against it. With gold at 0.5 and others
    at 0.9, 0.5 and 0.1, the rank is 3: other_sql 1/3, mrr 1/3, recall@1 0.
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
    """{database: {English question: the golds that it has}}"""
    found: dict = defaultdict(lambda: defaultdict(set))
    for entry in entries:
        for lang, question in entry.questions:
            if lang == "en":
                found[entry.db_id][question].add(entry.gold)
    return found


def english_metrics(
    question: Question, english: dict[str, dict[str, set[str]]], embeddings: Embeddings
) -> dict[str, float]:
    """{"english_recall@1": 1.0 if an English question with its gold is closer than all others on
    the database}; empty for English questions, and if there is none, or no other.
    """
    found = english.get(question.entry.db_id, {})
    same = torch.tensor([question.entry.gold in golds for golds in found.values()])
    if question.lang == "en" or not found or same.all() or not same.any():
        return {}
    cosines = embeddings.cosines(question.text, list(found), "query")
    return {"english_recall@1": float(cosines[same].max() > cosines[~same].max())}


@dataclass(frozen=True)
class Mean:
    """A mean over n questions, and the same of resamples of them, (RESAMPLES,)."""

    value: float
    resampled: np.ndarray
    n: int

    def interval(self) -> dict:
        """{"value", "low", "high", "n"}, the 95 % interval being that of the resamples."""
        return summary(self.value, self.resampled, self.n)


def mean_of(means: Sequence[Mean], n: int) -> Mean:
    """The mean of means, each of which counts alike, whatever its n."""
    resampled = np.stack([one.resampled for one in means])  # (len(means), RESAMPLES)
    known = ~np.isnan(resampled)  # a small group may be missing from a resample
    with np.errstate(invalid="ignore"):
        average = np.where(known, resampled, 0).sum(axis=0) / known.sum(axis=0)
    return Mean(float(np.mean([one.value for one in means])), average, n)


def summarize(
    questions: Sequence[Question], metrics: Sequence[dict[str, float]], seed: int
) -> dict:
    """report[lang or "average"][metric] = {"value", "low", "high", "n"}; one dict per question.

    A question counts where it has the metric. "mean_over_kinds" is the mean of the kinds of near
    misses, and "average" that of the languages, in which each counts alike.
    """
    rows = [(q, name, value) for q, one in zip(questions, metrics) for name, value in one.items()]
    if not rows:
        return {}
    groups = [(question.lang, name) for question, name, _ in rows]
    values = np.array([value for _, _, value in rows])
    clusters = [question.cluster for question, _, _ in rows]
    found = defaultdict(list)
    for group, value in zip(groups, values):
        found[group].append(value)
    table: dict[str, dict[str, Mean]] = defaultdict(dict)
    for (lang, name), resampled in resampled_means(values[:, None], groups, clusters, seed).items():
        ones = found[lang, name]
        table[lang][name] = Mean(float(np.mean(ones)), resampled[:, 0], len(ones))
    for means in table.values():
        kinds = [means[kind] for kind in KINDS if kind in means]
        if kinds:
            means["mean_over_kinds"] = mean_of(kinds, means["all_near_misses"].n)
    langs = list(table)
    for name in dict.fromkeys(name for lang in langs for name in table[lang]):
        ones = [table[lang][name] for lang in langs if name in table[lang]]
        table["average"][name] = mean_of(ones, sum(one.n for one in ones))
    return {
        lang: {name: mean.interval() for name, mean in means.items()}
        for lang, means in table.items()
    }
