"""The packed computation (prompt once per group) gives the same numbers as one row per completion,
and the sampler agrees with it.
"""

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.logprobs import chunk_size, completion_logprobs
from grpo.lora import add_lora, lora_merged, lora_parameters
from grpo.packing import pack_groups
from grpo.sampler import sample_groups
from sqlenv import UserError

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    eos_token_id=1,
)
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
COMPLETIONS = [[[20, 21, 1], [22, 1]], [[23, 24, 25, 26], [1]], [[27, 1], [28, 29, 30]]]


def make(kind: str = "llama"):
    torch.manual_seed(0)
    config, model = MODELS[kind]
    model = model(config(**SHAPE)).eval()
    with torch.no_grad():  # sharper than a fresh model, so that differences show
        for tensor in model.parameters():
            tensor.mul_(4) if tensor.dim() > 1 else None
    return model


def with_lora(kind: str = "llama"):
    model = add_lora(make(kind), rank=3, alpha=6)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in lora_parameters(model).values():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    return model


def naive_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + completion])).logits[0]
    logprobs = torch.log_softmax(logits.float(), -1)
    return torch.stack([logprobs[len(prompt) + t - 1, token] for t, token in enumerate(completion)])


@pytest.mark.parametrize("kind", MODELS)
def test_packed_logprobs_and_gradients_equal_one_row_per_completion(kind):
    model = with_lora(kind)
    parameters = list(lora_parameters(model).values())
    packed = completion_logprobs(model, PROMPTS, COMPLETIONS)
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2))
    packed_gradients = torch.autograd.grad((packed * weights).sum(), parameters)
    total = 0.0
    for p, (prompt, group) in enumerate(zip(PROMPTS, COMPLETIONS)):
        for g, completion in enumerate(group):
            expected, length = naive_logprobs(model, prompt, completion), len(completion)
            assert torch.allclose(packed[p, g, :length], expected, atol=1e-5)
            assert (packed[p, g, length:] == 0).all()
            total = total + (expected * weights[p, g, :length]).sum()
    for ours, naive in zip(packed_gradients, torch.autograd.grad(total, parameters)):
        assert (ours - naive).norm() <= 1e-5 * naive.norm()


def test_entropy_is_that_of_the_next_token_distribution():
    model = make()
    _, entropy = completion_logprobs(model, PROMPTS[:1], COMPLETIONS[:1], with_entropy=True)
    logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].float()
    assert torch.allclose(
        entropy[0, 0, 0], torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5
    )


def test_logprobs_of_a_bfloat16_model_are_normalised_in_float32():
    """All 50 tokens as completions of one prompt: their probabilities sum to 1 to float32's
    accuracy. After a softmax in bfloat16 (8 bits of mantissa) they would not.
    """
    model = make().bfloat16()
    every = [[[token] for token in range(50)]]
    logprobs = completion_logprobs(model, [PROMPTS[0]], every)
    assert logprobs.dtype == torch.float32
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_row_by_hand():
    """Prompt [5, 6], completions [7] and [8, 9]: 9 is predicted by 8 (index 3), 7 and 8 by the
    prompt's last token (index 1). Who sees whom: tests/test_attention.py.
    """
    packed = pack_groups([[5, 6]], [[[7], [8, 9]]])
    assert packed.ids.tolist() == [5, 6, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3]
    assert packed.predictors.tolist() == [1, 1, 3]
    assert packed.targets.tolist() == [7, 8, 9]
    assert packed.mask.tolist() == [[[True, False], [True, True]]]


def test_mask_comes_from_lengths_not_from_ids():
    """EOS doubling as the padding id 0 is a token like any other."""
    packed = pack_groups([[5, 0], [6]], [[[0, 7, 0]], [[0]]])
    assert packed.mask.tolist() == [[[True, True, True]], [[True, False, False]]]


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_decoding_equals_generate(kind):
    model = make(kind)
    samples = sample_groups(
        model, PROMPTS, eos_ids={1}, group_size=2, max_new_tokens=12, temperature=0
    )
    for prompt, group in zip(PROMPTS, samples.completion_ids):
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )
        expected = expected[0, len(prompt) :].tolist()
        assert group == [expected, expected]


def test_sampled_logprobs_are_the_trainers():
    """Ragged endings (several EOS ids, so that rows and prompts leave early) and a temperature
    other than 1.
    """
    model = with_lora()
    options = {"group_size": 5, "max_new_tokens": 16, "temperature": 0.7, "seeds": list(range(9))}
    with lora_merged(model):
        samples = sample_groups(model, PROMPTS * 3, eos_ids=set(range(1, 14)), **options)
    lengths = {len(ids) for group in samples.completion_ids for ids in group}
    assert len(lengths) > 4  # the test is about ragged completions
    again = completion_logprobs(model, PROMPTS * 3, samples.completion_ids, temperature=0.7)
    assert torch.allclose(samples.logprobs, again, atol=1e-4)
    for group, finished in zip(samples.completion_ids, samples.finished.tolist()):
        for ids, ended in zip(group, finished):
            assert not any(1 <= token < 14 for token in ids[:-1])
            assert ended == (1 <= ids[-1] < 14) and (ended or len(ids) == 16)


def test_completions_are_a_function_of_their_prompts_seed():
    """They do not depend on the other prompts, so that a batch can be split over processes."""
    model, seeds = make(), list(range(7, 7 + len(PROMPTS)))
    options = {"eos_ids": {1}, "group_size": 4, "max_new_tokens": 10}
    together = sample_groups(model, PROMPTS, seeds=seeds, **options).completion_ids
    for prompt, seed, group in zip(PROMPTS, seeds, together, strict=True):
        assert sample_groups(model, [prompt], seeds=[seed], **options).completion_ids == [group]
    other = sample_groups(model, PROMPTS, seeds=seeds[::-1], **options)
    assert other.completion_ids != together


def test_sampling_follows_the_distribution():
    """The first token's frequencies over 4,000 draws are the softmax's, within four standard
    errors.
    """
    model, draws = make(), 4000
    probabilities = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].float(), -1)
    samples = sample_groups(
        model, [PROMPTS[0]], eos_ids={1}, group_size=draws, max_new_tokens=1, seeds=[0]
    )
    tokens = torch.tensor(samples.completion_ids[0])[:, 0]
    frequencies = torch.bincount(tokens, minlength=50) / draws
    standard_errors = (probabilities * (1 - probabilities) / draws).sqrt()
    assert ((frequencies - probabilities).abs() <= 4 * standard_errors + 1e-3).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_clear_error(temperature):
    model = make()
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 3] = float("inf")
    with pytest.raises(UserError, match="logits are not finite.*--dtype float32"):
        sample_groups(
            model,
            PROMPTS,
            eos_ids={1},
            group_size=2,
            max_new_tokens=4,
            temperature=temperature,
        )


def test_logits_that_exist_at_a_time():
    """2^25 = 33,554,432 on a GPU: of 1,048 tokens with a vocabulary of 32,000, and 261 with one of
    128,256; but of 256 tokens at least, as on a CPU.
    """
    assert [chunk_size("cuda", vocab) for vocab in (32000, 128256, 262144)] == [1048, 261, 256]
    assert chunk_size("cpu", 32000) == 256
