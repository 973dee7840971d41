"""A small encoder from scratch: byte-level BPE tokenizer and XLM-RoBERTa architecture.

The encoder that ships with the project is one of these. It has no pretraining, so it knows only the
words of its own training data.
"""

from collections.abc import Iterable

from tokenizers import Regex, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from encoder.bpe import train_bpe
from encoder.model import MAX_TOKENS, ContrastiveEncoder

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0 to 3 as in XLM-R
# Matches a run of Latin letters, a run of other letters, one digit, an operator, or another
# character. Spaces and underscores are no part of a word, so `France` is the same token in a
# question, in 'France', in 来自France的 and in France_id. Each digit is a token, so 1984 and 1985
# differ in the last one only, whether or not training had them.
WORDS = r"\p{Latin}+|[^\P{L}\p{Latin}]+|\p{N}|[<>!]=|<>|[^\s\p{L}\p{N}]"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; no text is out of vocabulary, but spacing is lost."""
    tokenizer = train_bpe(
        texts,
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        split=pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        use_regex=False,
        normalizer=normalizers.NFC(),  # Vietnamese may be composed or decomposed
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_TOKENS,
    )


def small_encoder(
    texts: Iterable[str], *, dim: int, vocab_size: int = 12000, layers: int = 4, hidden: int = 128
) -> ContrastiveEncoder:
    """An untrained encoder; torch's global random generator draws its weights.

    Args:
        texts: what its tokenizer is trained on.
        dim: size of an embedding.
        vocab_size: number of tokens, at most.
        layers: number of transformer layers.
        hidden: width, a multiple of 32, the width of an attention head.
    """
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,  # with few epochs, dropout only slows training
        max_position_embeddings=MAX_TOKENS + 2,  # XLM-R counts positions from pad id + 1
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return ContrastiveEncoder(XLMRobertaModel(config, add_pooling_layer=False), tokenizer, dim=dim)
