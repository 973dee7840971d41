"""Byte-level BPE tokenizers, trained on given texts."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: list[str],
    split: pre_tokenizers.PreTokenizer,
    use_regex: bool,
    normalizer=None,
) -> Tokenizer:
    """A byte-level BPE tokenizer: every text in every language has tokens.

    Args:
        split: cuts a text before its bytes are merged; no token crosses a cut.
        use_regex: whether GPT-2's pattern cuts the pieces further.
        normalizer: of ``tokenizers.normalizers``, applied first.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
