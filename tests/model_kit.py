"""Tiny tokenizers and models, and a function that writes a model as a .gguf file."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>", "<|turn|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = dict(
    vocab_size=262,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def make_tokenizer(merges=(), **settings) -> PreTrainedTokenizerFast:
    """A token for each byte, then one for each merge; ids 0 to 5 are those of SPECIAL."""
    vocabulary = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({text: n for n, text in enumerate(vocabulary)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=SPECIAL[3:], **settings
    )


def make_model(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"hidden_act": "silu"} | settings))


def write_gguf(path, model: LlamaForCausalLM, tokenizer, merges) -> None:
    """The model as a .gguf file with float32 weights, as llama.cpp's converter lays them out: rows
    of queries and keys are interleaved within a head for its rotary embedding.
    """
    gguf = pytest.importorskip("gguf")
    config, tensors = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
        "self_attn.o_proj": "attn_output"
    }
    parts |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    for number in range(config.num_hidden_layers):
        layer, block = f"model.layers.{number}", f"blk.{number}"
        names |= {f"{layer}.{ours}": f"{block}.{theirs}" for ours, theirs in parts.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for ours, theirs in names.items():
        weight = tensors[f"{ours}.weight"]
        if count := heads.get(theirs.rpartition(".")[2]):
            weight = (
                weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            )
        writer.add_tensor(f"{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
