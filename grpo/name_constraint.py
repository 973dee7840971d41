"""Sampling that cannot invent names: among the most probable tokens only those are drawn from that
keep every identifier of the SQL a name of the schema (``--constrain-names``).

The distribution is the policy's over these tokens, renormalised. It is what log-probs have to be
computed under in training, too, so a rollout keeps the tokens that were allowed at every place.
A token that may not follow has no gradient: the policy is not taught to avoid made-up names, and
has to be used with the constraint that it was trained with.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sqlenv.sandbox.worker import FUNCTIONS
from sqlenv.text import ASCII_LOWER, KEYWORDS

STARTS = ("select", "with", "values")  # first words of a query
NAMING = ("as", "with", "recursive")  # before a name that the query gives
KNOWN = 20_000  # places and texts to remember of each database
CANDIDATES = 64  # most probable tokens that are looked at, and then as many more as it takes
# Words of SQL that are neither in KEYWORDS nor functions.
OTHERS = """
    binary blob current exclude false first following groups integer last materialized no nocase
    nulls numeric others preceding range real row rowid rows text ties true unbounded varchar
    window"""
NEVER = -1e4  # a logit whose probability is exactly 0, and whose product with it is not NaN
CLOSING = {"'": "'", '"': '"', "`": "`", "[": "]"}
UNREADABLE = "\ufffd"  # a part of a character, in tokenizers that work on bytes


@dataclass(frozen=True)
class Place:
    """Where in a query its text ends.

    Attributes:
        quote: the opening quote of the literal or quoted name that it is in; "" outside.
        word: the characters of the word that it ends in, in lower case; of a quoted name, too.
        before: the word before, in lower case.
        free: whether the word is none that the schema has to know: it was not readable.
        own: the names that the query has given itself, by AS or WITH.
    """

    quote: str = ""
    word: str = ""
    before: str = ""
    free: bool = False
    own: frozenset[str] = frozenset()


class NameConstraint:
    """What may follow in a query on a schema.

    Args:
        names: of its tables and columns.
    """

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(name.translate(ASCII_LOWER) for name in names)
        words = self.names | KEYWORDS | FUNCTIONS | frozenset(OTHERS.split())
        self.words = words
        self.prefixes = frozenset(word[:n] for word in words for n in range(1, len(word) + 1))
        self.quoted = frozenset(name[:n] for name in self.names for n in range(len(name) + 1))
        # What stands before a character that a tokenizer may cut into bytes.
        self.before_cuts = frozenset(
            name[:n] for name in self.names for n in range(len(name)) if not name[n].isascii()
        )
        self.known: dict[tuple[Place, str], Place | None] = {}

    def after(self, place: Place, text: str) -> Place | None:
        """The place behind a text; None if the text makes a word that is not allowed."""
        key = place, text
        if key not in self.known:
            if len(self.known) >= KNOWN:
                self.known.clear()
            self.known[key] = self._after(place, text)
        return self.known[key]

    def may_end(self, place: Place) -> bool:
        started = place.word or place.before
        return bool(started) and not place.quote and self._end_word(place) is not None

    def _after(self, place: Place | None, text: str) -> Place | None:
        for character in text:
            place = self._next(place, character) if place else None
        return place

    def _next(self, place: Place, character: str) -> Place | None:
        if place.quote:
            return self._in_quotes(place, character)
        if character == UNREADABLE:
            free = place.before and (self._may_be_cut(place) or place.before in NAMING)
            return replace(place, free=True, word=place.word + character) if free else None
        if character.isalnum() or character in "_$" or not character.isascii():
            word = place.word + character.translate(ASCII_LOWER)
            return replace(place, word=word) if self._may_become(place, word) else None
        ended = self._end_word(place)
        if ended is None:
            return None
        if not ended.before:
            return ended if character.isspace() or character == "(" else None
        return replace(ended, quote=character) if character in CLOSING else ended

    def _in_quotes(self, place: Place, character: str) -> Place | None:
        is_name, closed = place.quote != "'", character == CLOSING[place.quote]
        if not is_name:
            return replace(place, quote="") if closed else place
        if closed:
            known = place.word in self.names or place.free
            return replace(place, quote="", word="", free=False) if known else None
        word = place.word + character.translate(ASCII_LOWER)
        free = place.free or character == UNREADABLE and self._may_be_cut(place)
        return replace(place, word=word, free=free) if free or word in self.quoted else None

    def _may_be_cut(self, place: Place) -> bool:
        """Whether a part of a character may follow."""
        return place.free or place.word in self.before_cuts

    def _may_become(self, place: Place, word: str) -> bool:
        """Whether a word may begin like this: a name or keyword, a number, an alias; at the start
        of the query, its first word.
        """
        if not place.before:
            return any(start.startswith(word) for start in STARTS)
        if place.free or word[0].isdigit() or is_alias(word) or place.before in NAMING:
            return True
        return word in self.prefixes or any(own.startswith(word) for own in place.own)

    def _end_word(self, place: Place) -> Place | None:
        """The place behind the word; None if it is none that is allowed."""
        word = place.word
        if not word:
            return place
        own = place.own
        if place.before in NAMING and word not in KEYWORDS:
            own = own | {word}
        if not place.before and word not in STARTS:
            return None
        known = word in self.words or word in own or word[0].isdigit() or is_alias(word)
        if not (known or place.free):
            return None
        return Place("", "", word, False, own)


def is_alias(word: str) -> bool:
    """A letter and a number, such as ``t1`` or ``s``: what queries call their tables."""
    return word[0].isascii() and word[0].isalpha() and (word[1:].isdigit() or not word[1:])


class TokenTexts:
    """The text of each token behind others: alone, some tokenizers drop the space before it. None
    for special tokens, which have no place in SQL.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, dict.fromkeys(tokenizer.all_special_ids)
        self.start = tokenizer.encode("(", add_special_tokens=False)
        self.size = len(self._decode(self.start))

    def __call__(self, token: int) -> str | None:
        if token not in self.texts:
            self.texts[token] = self._decode([*self.start, token])[self.size :]
        return self.texts[token]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class ConstrainedRows:
    """The completions that are being sampled, and where each of them is.

    Args:
        constraints: one for each of C completions.
        text_of: a token's text behind others.
        eos_ids: tokens that end a completion.

    Attributes:
        allowed: for each completion and each of its tokens the ids that it was drawn from.
    """

    def __init__(
        self,
        constraints: list[NameConstraint],
        text_of: Callable[[int], str | None],
        eos_ids: set[int],
    ):
        self.constraints, self.text_of, self.eos_ids = constraints, text_of, eos_ids
        self.places = [Place() for _ in constraints]
        self.allowed: list[list[list[int]]] = [[] for _ in constraints]

    def mask(self, logits: Tensor, rows: list[int]) -> Tensor:
        """The logits of the next tokens of some completions, (c, V), with ``NEVER`` for what may
        not follow.
        """
        masked = torch.full_like(logits, NEVER)
        for n, row in enumerate(rows):
            ids = self._allowed(logits[n], row)
            self.allowed[row].append(ids)
            masked[n, ids] = logits[n, ids]
        return masked

    def advance(self, rows: list[int], tokens: list[int]) -> None:
        """Notes the tokens that were drawn."""
        for row, token in zip(rows, tokens):
            text = None if token in self.eos_ids else self.text_of(token)
            if text is not None:
                place = self.constraints[row].after(self.places[row], text)
                self.places[row] = place or self.places[row]

    def _allowed(self, logits: Tensor, row: int) -> list[int]:
        """The allowed ones of the most probable tokens, in their order: of ``CANDIDATES``, or of
        four times as many as before until there is one.
        """
        count, size = min(CANDIDATES, len(logits)), len(logits)
        while True:
            candidates = logits.topk(count).indices.tolist()
            if ids := [token for token in candidates if self._may_follow(row, token)]:
                return ids
            if count == size:
                return candidates[:CANDIDATES]  # no token fits: the policy goes its own way
            count = min(4 * count, size)

    def _may_follow(self, row: int, token: int) -> bool:
        constraint, place = self.constraints[row], self.places[row]
        if token in self.eos_ids:
            return constraint.may_end(place)
        text = self.text_of(token)
        return text is not None and constraint.after(place, text) is not None
