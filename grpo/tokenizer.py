"""A tokenizer for models that have to copy names from a schema.

A word is cut alike wherever it stands: in a question, in ``birth_date`` and in ``BirthDate``. Texts
are split at spaces, underscores, punctuation, digits and changes of case. SQL keywords keep the
spaces around them, so that a name in SQL needs no tokens for its spaces. A word of the vocabulary
is one token, with the space between it and the word before. Any other is spelled in syllables,
``bro si m``: an unknown word in the question and in the schema has the same tokens but for its
ending, and a syllable is rare enough in a prompt to find what follows it. Han and kana are merged
by BPE.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from encoder.bpe import train_bpe

SPECIAL = ["<s>", "</s>", "<pad>"]
# Each alternative is a token together with the spaces around it.
KEYWORDS = (
    r"CREATE TABLE|INTEGER PRIMARY KEY|INTEGER REFERENCES|INTEGER|TEXT|REAL|DATE|"
    r"SELECT DISTINCT|SELECT|FROM|AS T\d JOIN|AS T\d ON|AS T\d|JOIN|ON|WHERE|AND|OR|NOT IN|NOT|IN|"
    r"IS NULL|LIKE|BETWEEN|EXISTS|GROUP BY|HAVING|ORDER BY|ASC|DESC|LIMIT|UNION|INTERSECT|EXCEPT|"
    r"COUNT|SUM|AVG|MAX|MIN|T\d\."
)
WORD = r"(?:\p{Lu}?[\p{Ll}\p{M}]+|\p{Lu}+(?!\p{Ll})|\p{L})"
# The pieces of a text, tried in this order: keywords, a word after another, a digit, an underscore,
# punctuation and spaces, scripts without spaces, words by case.
PIECES = (
    rf" ?\b(?:{KEYWORDS})(?<=\.|\b) ?|(?<=[\p{{L}}\p{{M}}]) {WORD}|\p{{N}}|_|"
    rf"[^\p{{L}}\p{{M}}\p{{N}}_]+|\p{{Han}}+|\p{{Hiragana}}+|[\p{{Katakana}}ー]+|{WORD}"
)
# A syllable is an onset, one consonant or a cluster, and a vowel.
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
CLUSTERS = (
    "bl br ch cl cr dr fl fr gl gr kl kr ph pl pr qu sc sh sk sl sm sn sp st sw th tr tw wh wr"
).split()
SPLIT = pre_tokenizers.Split(Regex(PIECES), "isolated")
MERGED_SHARE = 0.2  # of the vocabulary: tokens made by BPE


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary has the most frequent pieces of the texts."""
    counts = Counter(piece for text in texts for piece, _ in SPLIT.pre_tokenize_str(text))
    # What BPE merges: pieces without ASCII, and the other letters of other pieces.
    parts = (
        part
        for piece, count in counts.items()
        for part in re.findall(r"[^\x00-\x7f]+", piece) * min(count, 100)
    )
    merged = train_bpe(
        parts,
        vocab_size=int(vocab_size * MERGED_SHARE),
        special_tokens=SPECIAL,
        split=pre_tokenizers.Split("\n", "removed"),  # none: the parts are pieces already
        use_regex=False,
    )
    model = json.loads(merged.to_str())["model"]
    keywords = [k.replace(r"\d", d).replace("\\", "") for k in KEYWORDS.split("|") for d in "1234"]
    spaced = [a + k + b for k in keywords for a, b in itertools.product(("", " "), repeat=2)]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab, merges = dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
    for left, right in syllables():
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    for piece in [*spaced, *(piece for piece, _ in counts.most_common())]:
        ((token, _),) = to_bytes.pre_tokenize_str(piece)
        if len(vocab) < vocab_size:
            vocab.setdefault(token, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([SPLIT, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def encode_wording(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text as after another word, where it usually stands in a question."""
    return tokenizer.encode(f"a {text}", add_special_tokens=False)[1:]


def syllables() -> Iterator[tuple[str, str]]:
    """The merges that make syllables, in lower case, upper case and capitalised: clusters of
    consonants, then onsets with vowels.
    """
    onsets = [*CLUSTERS, *CONSONANTS]
    pairs = [tuple(cluster) for cluster in CLUSTERS] + list(itertools.product(onsets, VOWELS))
    for left, right in pairs:
        yield left, right
        yield left.capitalize(), right
        yield left.upper(), right.upper()


def spellings(tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[int, list[int]]]:
    """The syllables of the words of the vocabulary, as if they were not in it: {word in lower case:
    {id: ids}}, with an id for each way of writing it. Only words with a Latin letter that are more
    than one syllable.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["model"]["ignore_merges"] = False
    letters = Tokenizer.from_str(json.dumps(settings))
    words: dict[str, dict[int, list[int]]] = {}
    for token, index in sorted(tokenizer.get_vocab().items()):  # which has no fixed order
        text = tokenizer.convert_tokens_to_string([token])
        word = text.removeprefix(" ")
        is_word = re.fullmatch(r"[^\W\d_]{2,}", word) and re.search("[A-Za-z]", word)
        ids = letters.encode(text, add_special_tokens=False).ids
        if is_word and word not in KEYWORDS.split("|") and len(ids) > 1:
            words.setdefault(word.lower(), {})[index] = ids
    return words


def variants(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Groups of tokens that are the same word or piece of one but for case and the space before it,
    such as ``price``, `` price``, ``Price`` and ``PRICE``.
    """
    groups: dict[str, list[int]] = {}
    for token, index in sorted(tokenizer.get_vocab().items()):
        text = tokenizer.convert_tokens_to_string([token]).strip().lower()
        if text.isalpha():
            groups.setdefault(text, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def vocabulary_words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The words of three and more letters from a to z in the vocabulary, in lower case."""
    texts = (tokenizer.convert_tokens_to_string([token]) for token in tokenizer.get_vocab())
    words = {text.strip().lower() for text in texts}
    return sorted(w for w in words if re.fullmatch("[a-z]{3,}", w))
