"""Shared-prefix attention by hand, and compared with the naive computation: one padded row per
completion, through transformers' own attention.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo import attention
from grpo.attention import Decoding, Groups
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, lora_parameters
from grpo.models import checkpoint_activations
from grpo.padded_rows import Rows, padded_rows
from grpo.sampler import sample_groups
from sqlenv import UserError

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    eos_token_id=1,
)
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),  # its projections have biases
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    # Windows shorter than the prompts and than the completions.
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, dict(sliding_window=4, layer_types=LAYERS)),
    "mistral": (MistralForCausalLM, MistralConfig, dict(sliding_window=3)),
}
WAYS = [  # bfloat16 against eager, which rounds its scores to it as ours: sdpa alone moves 2 to 3 %
    ("sdpa", torch.float32, 1e-5),
    ("eager", torch.float32, 1e-5),
    ("eager", torch.bfloat16, 2e-2),
]
BATCHES = {  # (prompt lengths, completion lengths of each)
    "ragged, one empty": ([9, 3, 6], [[4, 7], [0, 2], [5, 1]]),
    "one prompt": ([8], [[3, 6, 1]]),
    "one completion each": ([2, 7], [[5], [3]]),
    "equal lengths": ([6, 6], [[4, 4], [4, 4]]),
}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """So that prompts have several blocks of queries, the last one cut off."""
    monkeypatch.setattr(attention, "BLOCK", 4)


def make(kind: str, dtype: torch.dtype = torch.float32, implementation: str = "sdpa"):
    """Random weights, the same each time, with LoRA."""
    torch.manual_seed(0)
    model, config, more = MODELS[kind]
    model = model._from_config(config(**SHAPE, **more), attn_implementation=implementation).eval()
    with torch.no_grad():  # sharper than a fresh model, so that differences show
        for name, tensor in model.named_parameters():
            tensor.normal_() if name.endswith("bias") else None
            tensor.mul_(3) if tensor.dim() > 1 else None
    add_lora(model.to(dtype), rank=3, alpha=6)
    with torch.no_grad():
        for tensor in lora_parameters(model).values():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    return model


def batch(lengths: tuple[list[int], list[list[int]]]):
    """Random tokens of these lengths."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(2, 50, (n,), generator=generator).tolist()  # noqa: E731
    return [draw(n) for n in lengths[0]], [[draw(n) for n in group] for group in lengths[1]]


def naive_logprobs(model, prompts, completions, temperature: float = 1) -> torch.Tensor:
    """One row for each completion, padded at the end, through the whole model: (P, G, T)."""
    rows = [(prompt, ids) for prompt, group in zip(prompts, completions) for ids in group]
    lengths = torch.tensor([[len(prompt) + len(ids)] for prompt, ids in rows])
    width = int(lengths.max())
    padded = [prompt + ids + [0] * (width - len(prompt) - len(ids)) for prompt, ids in rows]
    mask = (torch.arange(width) < lengths).long()
    logits = model(torch.tensor(padded), attention_mask=mask).logits.float() / temperature
    distributions = logits.log_softmax(-1)
    logprobs = torch.zeros(len(rows), max(1, *(len(ids) for _, ids in rows)))
    for i, (prompt, ids) in enumerate(rows):
        predictors = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        logprobs[i, : len(ids)] = distributions[i, predictors, ids]
    return logprobs.unflatten(0, (len(prompts), -1))


def gradient(model, logprobs: torch.Tensor) -> torch.Tensor:
    """The gradient of a weighted sum of the log-probabilities; all LoRA weights as one vector."""
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((logprobs * weights).sum(), lora_parameters(model).values())
    return torch.cat([gradient.flatten() for gradient in gradients])


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the norm."""
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("attention, dtype, limit", WAYS)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("kind", MODELS)
def test_logprobs_and_gradients_equal_the_naive_ones(kind, lengths, attention, dtype, limit):
    """Within the limit, relative to their norm."""
    ours, naive = make(kind, dtype), make(kind, dtype, attention)
    texts = batch(lengths)
    logprobs, expected = completion_logprobs(ours, *texts), naive_logprobs(naive, *texts)
    assert logprobs.shape == expected.shape
    assert error(logprobs, expected) <= limit
    assert torch.equal(logprobs == 0, expected == 0)  # nothing where there is no token
    assert error(gradient(ours, logprobs), gradient(naive, expected)) <= limit


@pytest.mark.parametrize("kind", MODELS)
def test_checkpointed_activations_change_nothing(kind):
    plain, checkpointed = make(kind), make(kind)
    checkpoint_activations(checkpointed)
    texts = batch(BATCHES["ragged, one empty"])
    ours, theirs = (completion_logprobs(model, *texts) for model in (checkpointed, plain))
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(checkpointed, ours), gradient(plain, theirs))
    options = {"eos_ids": {1}, "group_size": 2, "max_new_tokens": 8, "seeds": [1, 2, 3]}
    ours, theirs = (sample_groups(model, texts[0], **options) for model in (checkpointed, plain))
    assert ours.completion_ids == theirs.completion_ids


def test_the_temperature_is_in_the_gradient_too():
    """Dividing the logits by 0.5 doubles what a weight changes in them, besides moving them."""
    ours, naive = make("llama"), make("llama")
    texts = batch(BATCHES["one prompt"])
    logprobs, entropy = completion_logprobs(ours, *texts, temperature=0.5, with_entropy=True)
    expected = naive_logprobs(naive, *texts, temperature=0.5)
    assert error(logprobs, expected) <= 1e-5
    assert error(gradient(ours, logprobs), gradient(naive, expected)) <= 1e-5
    assert not entropy.requires_grad


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_decoding_equals_generate(kind):
    """Also where completions end at different times: any of 12 tokens ends one."""
    prompts, _ = batch(([9, 2, 6, 4], []))
    eos = set(range(1, 13))
    samples = sample_groups(
        make(kind), prompts, eos_ids=eos, group_size=2, max_new_tokens=24, temperature=0
    )
    lengths = set()
    for prompt, group in zip(prompts, samples.completion_ids):
        expected = (
            make(kind)
            .generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=list(eos),
            )[0, len(prompt) :]
            .tolist()
        )
        assert group == [expected, expected]
        lengths.add(len(expected))
    assert len(lengths) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_decoding_gives_the_log_probs_of_training(kind, dtype):
    """Groups whose completions leave one after another, some groups whole before others."""
    model = make(kind, dtype)
    prompts, _ = batch(([9, 2, 6, 4], []))
    options = {"group_size": 5, "max_new_tokens": 12, "seeds": [3, 4, 5, 6]}
    samples = sample_groups(model, prompts, eos_ids=set(range(1, 13)), **options)
    assert len({len(ids) for group in samples.completion_ids for ids in group}) > 4
    again = completion_logprobs(model, prompts, samples.completion_ids)
    assert error(samples.logprobs, again) <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_gradients_of_padded_rows_by_hand():
    """Sequences a b and c as rows a b and c -. The gradients 1 2 and 3 4 of the rows are 1 2 3 of
    the sequences: nothing comes from padding. The other way round 5 6 7 become 5 6 and 7 0.
    """
    rows = Rows(*padded_rows(torch.tensor([2, 1])))
    column = lambda *values: torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)  # noqa: E731
    sequences = column(1, 1, 1).requires_grad_()
    rows.pad(sequences).backward(column(1, 2, 3, 4).view(2, 2, 1, 1))
    assert sequences.grad.flatten().tolist() == [1, 2, 3]
    padded = torch.ones(2, 2, 1, 1, requires_grad=True)
    rows.unpad(padded).backward(column(5, 6, 7))
    assert padded.grad.flatten().tolist() == [5, 6, 7, 0]


def seen(attend, count: int, window: int | None) -> torch.Tensor:
    """Which keys each token sees: (N, N) for N tokens, each row sums to 1. Keys of zero give all
    visible keys the same weight, and one-hot values show which they are.
    """
    zeros, values = torch.zeros(count, 1, count), torch.eye(count)[:, None]
    return attend(0, zeros, zeros, values, 1.0, window)[:, 0]


def test_who_sees_whom_by_hand():
    """Prompt a b, completions c and d e, in the row a b c d e. e sees a, b, d and itself, not c.
    Positions are 0 1 2 2 3, so within a window of 2 e sees d and itself, and c sees b and itself.
    """
    layout = Groups([2], [1, 2])
    third, half = 1 / 3, 1 / 2
    expected = [
        [1, 0, 0, 0, 0],
        [half, half, 0, 0, 0],
        [third, third, third, 0, 0],
        [third, third, 0, third, 0],
        [0.25, 0.25, 0, 0.25, 0.25],
    ]
    assert torch.allclose(seen(layout.attend, 5, None), torch.tensor(expected))
    expected = [
        [1, 0, 0, 0, 0],
        [half, half, 0, 0, 0],
        [0, half, half, 0, 0],
        [0, half, 0, half, 0],
        [0, 0, 0, half, half],
    ]
    assert torch.allclose(seen(layout.attend, 5, 2), torch.tensor(expected))


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=2, max_size=2)),
        min_size=1,
        max_size=4,
    ),
    st.one_of(st.none(), st.integers(1, 8)),
)
@settings(deadline=None, max_examples=60)
def test_who_sees_whom(groups, window):
    """For any lengths and window: a token sees its prompt and its own completion, from itself
    back.
    """
    sequence, position = [], []  # (prompt, completion or -1) of each token of the row
    for p, (length, _) in enumerate(groups):
        sequence += [(p, -1)] * length
        position += range(length)
    for p, (length, sizes) in enumerate(groups):
        for g, size in enumerate(sizes):
            sequence += [(p, g)] * size
            position += range(length, length + size)
    expected = torch.zeros(len(sequence), len(sequence))
    for i, (p, g) in enumerate(sequence):
        for j, (q, h) in enumerate(sequence):
            back = position[i] - position[j]
            near = back >= 0 and (window is None or back < window)
            expected[i, j] = p == q and h in (-1, g) and near
    expected /= expected.sum(1, keepdim=True)
    layout = Groups([length for length, _ in groups], [n for _, sizes in groups for n in sizes])
    assert torch.allclose(seen(layout.attend, len(sequence), window), expected)


def test_decoding_by_hand():
    """Prompt values 1 and 3, own values 5 and 7, all keys 0: the first own token sees
    (1 + 3 + 5) / 3 = 3, the second (1 + 3 + 5 + 7) / 4 = 4, within a window of 3 (3 + 5 + 7) / 3
    = 5. The other prompt, with value 2, has a completion that leaves after its first token:
    (2 + 8) / 2 = 5.
    """
    column = lambda *values: torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)  # noqa: E731
    prefill = Groups([2, 1], [])
    prefill.attend(0, column(0, 0, 0), column(0, 0, 0), column(1, 3, 2), 1.0, None)
    for window, last in ((None, 4), (3, 5)):
        decoding = Decoding(prefill, 1, 2)
        assert decoding.advance().tolist() == [2, 1]
        out = decoding.attend(0, column(0, 0), column(0, 0), column(5, 8), 1.0, window)
        assert out.flatten().tolist() == [3, 5]
        decoding.keep(torch.tensor([0]))
        assert decoding.advance().tolist() == [3]
        out = decoding.attend(0, column(0), column(0), column(7), 1.0, window)
        assert out.flatten().tolist() == [last]


def test_the_prompt_goes_through_the_model_once():
    """Prompts of 9 and 3 tokens, 2 + 1 and 4 + 0 completion tokens: 19 rows in every product."""
    model, rows = make("llama"), []
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda _, inputs, out: rows.append(out.shape[:-1].numel()))
    completion_logprobs(model, *batch(([9, 3], [[2, 1], [4, 0]])))
    assert rows == [19, 19, 19]


def test_the_model_works_in_the_ordinary_way_afterwards():
    """Padded rows, with the padding at the left, as before its attention was replaced."""
    model = make("gemma3")
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]])
    mask = (ids > 0).long()
    before = model(ids, attention_mask=mask).logits
    completion_logprobs(model, [[5, 6]], [[[7, 8]]])
    assert torch.allclose(model(ids, attention_mask=mask).logits[1], before[1], atol=1e-6)
    assert torch.allclose(model(ids, attention_mask=mask).logits[0, 2:], before[0, 2:], atol=1e-6)


def test_attention_with_a_softcap_is_a_clear_error():
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, attn_logit_softcapping=30.0)).eval()
    with pytest.raises(UserError, match="Gemma2Attention has softcap in its attention"):
        completion_logprobs(model, [[5, 6]], [[[7, 8]]])


def test_a_layer_that_mixes_tokens_otherwise_is_a_clear_error():
    """A layer whose attention is not transformers' would mix the groups unnoticed."""
    model = make("llama")
    attention = model.base_model.layers[1].self_attn
    attention.forward = lambda hidden_states, **rest: (hidden_states.cumsum(1), None)
    with pytest.raises(UserError, match="LlamaForCausalLM: not every layer attends through"):
        completion_logprobs(model, [[5, 6]], [[[7, 8]]])


@pytest.mark.parametrize("kind", MODELS)
def test_under_autocast_attention_takes_the_dtype_of_the_values(monkeypatch, kind):
    """Float32 weights, bfloat16 products: rotary embeddings give float32 queries and keys."""
    seen, attend = set(), Groups.attend

    def spy(self, layer, query, key, value, *rest):
        seen.update(x.dtype for x in (query, key, value))
        return attend(self, layer, query, key, value, *rest)

    monkeypatch.setattr(Groups, "attend", spy)
    model, (prompts, completions) = make(kind), batch(BATCHES["ragged, one empty"])
    exact = completion_logprobs(model, prompts, completions)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = completion_logprobs(model, prompts, completions)
    assert seen == {torch.bfloat16}
    assert 0 < (rounded - exact).abs().mean() < 0.1
