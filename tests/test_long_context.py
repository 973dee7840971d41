"""Models that treat long sequences otherwise: right up to that length, refused past it."""

import pytest
import torch
from model_kit import SHAPE, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from grpo.logprobs import completion_logprobs
from grpo.model_checks import fixed_context
from grpo.models import load_policy
from grpo.sampler import sample_groups
from sqlenv import UserError

LIMIT = 16
FACTORS = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 4.0, 6.0, 8.0]}
LONGROPE = FACTORS | {"rope_type": "longrope", "original_max_position_embeddings": LIMIT}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
BY_LAYER = {
    "full_attention": DYNAMIC,
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
LIMITED = {  # the first tokens of a sequence are treated otherwise if it has more than LIMIT
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
    "longrope": (
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": LIMIT,
        },
    ),
    "longrope with experts": (
        "phimoe",
        {
            "rope_parameters": LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3},
            "max_position_embeddings": 64,
            "num_local_experts": 2,
        },
    ),
    "dynamic in some layers": (
        "gemma3_text",
        {
            "rope_parameters": BY_LAYER,
            "max_position_embeddings": LIMIT,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
UNLIMITED = {
    "default": ("llama", {"max_position_embeddings": LIMIT}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "yarn": ("llama", {"rope_parameters": YARN, "max_position_embeddings": 64}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 64}),
}


def load(folder, kind: str, settings: dict):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | {"num_hidden_layers": 2} | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # sharper than a fresh model, so that differences show
        for tensor in model.parameters():
            tensor.normal_(0, 0.3) if tensor.dim() > 1 else None
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_policy(str(folder), "cpu", "float32").model


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 262, (count,), generator=generator).tolist()


@torch.no_grad()
def distributions(model, ids: list[int]) -> torch.Tensor:
    """By the model itself, of one sequence alone."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


@torch.no_grad()
def check(model, prompt: list[int], completions: list[list[int]]) -> None:
    """Log-probs of a group, and of samples, equal those of each sequence alone."""
    sampled = sample_groups(
        model, [prompt], eos_ids={1}, group_size=2, max_new_tokens=len(completions[0]), seeds=[1]
    )
    logprobs = completion_logprobs(model, [prompt], [completions])[0]
    groups = (completions, logprobs), (sampled.completion_ids[0], sampled.logprobs[0])
    for group, actual in groups:
        for ids, row in zip(group, actual):
            expected = distributions(model, prompt + ids)[len(prompt) - 1 : -1]
            expected = expected.gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert torch.allclose(row[: len(ids)], expected, atol=1e-5)


@pytest.mark.parametrize("name", LIMITED)
def test_up_to_the_limit_everything_is_right(tmp_path, name):
    model = load(tmp_path, *LIMITED[name])
    assert fixed_context(model.config) == LIMIT
    check(model, tokens(10, 1), [tokens(6, 2), tokens(3, 3)])


@pytest.mark.parametrize("name", LIMITED)
def test_past_the_limit_a_model_that_depends_on_it_is_refused(tmp_path, name):
    """Its own log-probs of the first tokens change there."""
    model = load(tmp_path, *LIMITED[name])
    ids = tokens(LIMIT + 4, 1)
    short, long = distributions(model, ids[:LIMIT]), distributions(model, ids)[:LIMIT]
    assert (short - long).abs().max() > 1e-2
    message = f"have {LIMIT + 4} tokens.*past {LIMIT} .*--max-new-tokens"
    with pytest.raises(UserError, match=message):
        completion_logprobs(model, [ids[:10]], [[ids[10:12], ids[10:]]])
    with pytest.raises(UserError, match=f"past {LIMIT} "):
        sample_groups(model, [ids[:10]], eos_ids=set(), group_size=2, max_new_tokens=20)
    with pytest.raises(UserError, match=f"past {LIMIT} "):
        sample_groups(model, [ids], eos_ids={1}, group_size=2, max_new_tokens=2)


@pytest.mark.parametrize("name", UNLIMITED)
def test_other_kinds_have_no_limit(tmp_path, name):
    """Right past the original context, too."""
    model = load(tmp_path, *UNLIMITED[name])
    assert fixed_context(model.config) is None
    check(model, tokens(LIMIT + 8, 1), [tokens(6, 2), tokens(3, 3)])


def test_attention_in_chunks_is_refused_at_once(tmp_path):
    """Llama 4 sees no key of an earlier chunk, which no argument of the attention function says."""
    AutoConfig.for_model("llama4_text", **SHAPE, attention_chunk_size=LIMIT).save_pretrained(
        tmp_path
    )
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has attention in chunks"):
        load_policy(str(tmp_path), "cpu", "float32")
