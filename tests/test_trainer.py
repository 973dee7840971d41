"""The training loop on a tiny model: what a step computes against the plain formula, that nothing
depends on how it is split or interrupted, and what happens when something goes wrong.
"""

import copy
import itertools
import logging
import math
import sqlite3
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import grpo.trainer
from grpo.advantages import group_advantages
from grpo.checkpoint import load_state, save_state
from grpo.config import Config
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, lora_disabled, lora_layers, lora_parameters
from grpo.loss import policy_loss
from grpo.models import Policy
from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS, Judge, Rewards
from grpo.rollout import Rollout
from grpo.sampler import Samples
from grpo.trainer import Trainer
from sqlenv import Example, Sandbox, UserError

# torch's advice on a step whose only update was skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
ANY_SPEED = settings(deadline=None)  # a busy machine is no failure
CLOCKS = tuple(
    f"{phase}_{unit}"
    for phase in ("sample", "reward", "train")
    for unit in ("seconds", "tokens_per_second")
)
PROMISED = {
    *("step", "reward", "reward_std", "groups_without_signal", "groups_sampled", "skipped"),
    *("loss", "entropy", "kl", "ratio", "ratio_max", "clip_low", "clip_high", "grad_norm", "lr"),
    *("sampler_gap", "sampler_gap_max", "completion_length", "truncated"),
    *CLOCKS,
}
LOSSES = ("token", "sequence", "constant")
RATIOS = ("token", "sequence", "cispo")
ADVANTAGES = ("centered", "group", "rloo", "per_reward")

# Whole queries are single tokens, so that a random policy writes some that run.
QUERIES = [
    "SELECT count(*) FROM singer;",
    "SELECT name FROM singer;",
    "SELECT name FROM singer WHERE age > 30;",
    "SELECT count(*) FROM shop;",
    "SELECT city FROM shop;",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
WORDS = "how many singers shops are there who old name city age all of is ? singer shop int".split()
EOS = {1, 5, 6}  # three tokens end an answer, so that lengths differ
DATABASES = {
    "concerts": """CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT);
        INSERT INTO singer VALUES (1, 'Ann', 25), (2, 'Bob', 35), (3, 'Cid', 40);""",
    "shops": """CREATE TABLE shop (id INTEGER PRIMARY KEY, city TEXT);
        INSERT INTO shop VALUES (1, 'Hue'), (2, 'Lyon');""",
}
QUESTIONS = [
    ("how many singers are there ?", "concerts", QUERIES[0]),
    ("how many shops are there ?", "shops", QUERIES[3]),
    ("name of all singers ?", "concerts", QUERIES[1]),
    ("city of all shops ?", "shops", QUERIES[4]),
    ("who is old ?", "concerts", QUERIES[2]),
]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    """Five questions on two databases."""
    folder = tmp_path_factory.mktemp("databases")
    for name, script in DATABASES.items():
        connection = sqlite3.connect(folder / f"{name}.sqlite")
        connection.executescript(script)
        connection.close()
    return [Example(q, "en", db, gold, folder / f"{db}.sqlite") for q, db, gold in QUESTIONS]


@pytest.fixture(scope="module")
def judge():
    with Sandbox(timeout=10) as sandbox:
        yield Judge(sandbox)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {text: n for n, text in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens(QUERIES)
    return tokenizer


TOKENIZER = make_tokenizer()


def make_policy(seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    """A tiny Llama whose LoRA already does something, so that it is not its reference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():  # sharper than a fresh model, so that differences show
            for tensor in model.parameters():
                tensor.mul_(4) if tensor.dim() > 1 else None
        add_lora(model.to(dtype), rank=3, alpha=6, generator_seed=seed)
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            for tensor in lora_parameters(model).values():
                tensor.copy_(torch.randn_like(tensor) * 0.1)
    return Policy(model, TOKENIZER, EOS)


class WordRewards:
    """A stand-in that gives nearly every group signal: the share of words of more than three
    letters, and how short the answer is. ``hook`` is called first, between sampling and training.
    """

    names = ["long", "short"]
    weights = torch.tensor([1.0, 0.5])

    def __init__(self, hook=None):
        self.hook, self.calls = hook, []

    def terms(self, question: str, text: str, length: int) -> list[float]:
        words = text.split()
        return [sum(len(word) > 3 for word in words) / max(1, len(words)), 1 / length]

    def __call__(self, examples, texts, prompts, lengths) -> torch.Tensor:
        self.calls.append((examples, texts, prompts, lengths))
        if self.hook:
            self.hook()
        return torch.tensor(
            [
                [self.terms(example.question, text, length) for text, length in zip(*group)]
                for example, *group in zip(examples, texts, lengths)
            ]
        )

    def failures(self) -> dict:
        return {}


class RareRewards(WordRewards):
    """Signal only for groups in which some answers, not all, have the word "old"."""

    names = ["old"]
    weights = torch.tensor([1.0])

    def terms(self, question, text, length):
        return [float("old" in text.split())]


def make_trainer(examples, rewards=None, policy=None, **changes) -> Trainer:
    small = dict(prompts_per_step=4, group_size=3, max_new_tokens=8, micro_batch=2, steps=4)
    config = Config.with_recipe(**small | dict(lr=5e-3, warmup_steps=1) | changes)
    return Trainer(policy or make_policy(), rewards or WordRewards(), examples, config)


def replay(trainer: Trainer, *batches: Rollout) -> None:
    """The trainer gets these batches instead of sampling some."""
    waiting = list(batches)

    def rollout(count: int) -> Rollout:
        for name in ("sample", "reward"):
            with trainer._timed(name):
                pass
        return waiting.pop(0)

    trainer.rollout = rollout


def lora_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.parameters.items()}


def same(ours, theirs) -> bool:
    """Whether two states, of tensors, numbers and containers of them, are equal to the last bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def without_clocks(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name not in CLOCKS}


def note_gradients(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    """A list that the gradients of every optimizer step are added to."""
    noted = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: noted.append({n: t.grad.clone() for n, t in trainer.parameters.items()})
    )
    return noted


def note_calls(monkeypatch, name: str) -> list[tuple]:
    """A list of (arguments, result) of every call of a function that the trainer uses."""
    noted, function = [], getattr(grpo.trainer, name)

    def noting(*arguments, **keywords):
        result = function(*arguments, **keywords)
        noted.append((arguments, result))
        return result

    monkeypatch.setattr(grpo.trainer, name, noting)
    return noted


def note_passes(monkeypatch, model) -> list[tuple[bool, int]]:
    """A list of (with LoRA?, prompts) of every pass over completions."""
    noted, function = [], grpo.trainer.completion_logprobs

    def noting(model, prompts, *arguments, **keywords):
        noted.append((next(lora_layers(model))[1].enabled, len(prompts)))
        return function(model, prompts, *arguments, **keywords)

    monkeypatch.setattr(grpo.trainer, "completion_logprobs", noting)
    return noted


def naive_logprobs(model, prompt: list[int], completion: list[int], temperature: float):
    """One completion in a row of its own: log-probabilities of its tokens, and the entropies."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs[torch.arange(len(completion)), completion], entropy


def plain_step(model, batch: Rollout, advantages, config: Config) -> tuple[dict, dict]:
    """The first update on a batch, written down as in the papers: completion by completion, in
    rows of their own, without micro-batches. Returns metrics and gradients.

    For the token, sequence and constant means, the ratio being 1, and k3 weighted by the ratio:
    J = sum_it w_it (ratio_it A_i - beta ratio_it (exp(-d_it) + d_it - 1)), d = log pi - log pi_ref.
    """
    everyone = [(p, g) for p, group in enumerate(batch.tokens) for g in range(len(group))]
    trained = [(p, g) for p, g in everyone if batch.finished[p, g] or not config.mask_truncated]
    total = sum(len(batch.tokens[p][g]) for p, g in trained)
    objective, metrics = torch.zeros(()), {"entropy": 0.0, "kl": 0.0}
    for p, g in trained:
        prompt, tokens = batch.prompts[p], batch.tokens[p][g]
        logprobs, entropy = naive_logprobs(model, prompt, tokens, config.temperature)
        with torch.no_grad(), lora_disabled(model):
            reference, _ = naive_logprobs(model, prompt, tokens, config.temperature)
        ratio = (logprobs - logprobs.detach()).exp()
        k3 = (reference - logprobs).exp() + logprobs - reference - 1
        weight = {
            "token": 1 / total,
            "sequence": 1 / len(everyone) / len(tokens),
            "constant": 1 / len(everyone) / config.max_new_tokens,
        }[config.loss]
        terms = ratio * advantages[p, g] - config.beta * ratio * k3
        objective = objective + weight * terms.sum()
        metrics["entropy"] += entropy.sum().item() / total
        metrics["kl"] += k3.sum().item() / total
    metrics["loss"] = -objective.item()
    parameters = lora_parameters(model)
    gradients = torch.autograd.grad(-objective, list(parameters.values()))
    metrics["grad_norm"] = math.sqrt(sum(g.square().sum().item() for g in gradients))
    return metrics, dict(zip(parameters, gradients))


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


# ------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_what_the_formula_says(examples, loss, mask_truncated):
    """Metrics, gradients and the weights after AdamW's first step, which moves every weight by
    lr g / (|g| + 1e-8), at a temperature other than 1. Everything is computed once more here from
    what was sampled.
    """
    trainer = make_trainer(
        examples, loss=loss, mask_truncated=mask_truncated, temperature=0.8, max_grad_norm=1e9
    )
    batch = trainer.rollout(4)
    lengths = {len(one) for group in batch.tokens for one in group}
    assert len(lengths) > 3 and batch.finished.any() and not batch.finished.all()
    replay(trainer, batch)
    expected, gradients = plain_step(
        trainer.model, batch, group_advantages(batch.total, "centered"), trainer.config
    )
    assert expected["kl"] > 1e-3 and expected["grad_norm"] > 1e-3
    before, noted = lora_of(trainer), note_gradients(trainer)
    metrics = trainer.train_step()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, tensor in trainer.parameters.items():
        assert close(noted[0][name], gradients[name])
        step = 5e-3 * noted[0][name] / (noted[0][name].abs() + 1e-8)
        assert torch.allclose(before[name] - tensor, step, atol=1e-6)
    assert (metrics["ratio"], metrics["ratio_max"]) == (pytest.approx(1, abs=1e-6), 1)
    assert (metrics["clip_low"], metrics["clip_high"], metrics["skipped"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage"), list(itertools.product(LOSSES, RATIOS, ADVANTAGES))
)
def test_micro_batches_change_nothing(examples, sampled, loss, ratio, advantage):
    """Gradients, metrics and weights. Two updates, since in the first all ratios are 1; the clip
    range is so narrow that tokens are clipped.
    """
    settings = dict(loss=loss, ratio=ratio, advantage=advantage, updates_per_batch=2, lr=1e-4)
    found = []
    for micro_batch in (1, 2, 4):
        trainer = make_trainer(
            examples, **settings, micro_batch=micro_batch, epsilon_low=1e-4, epsilon_high=1e-4
        )
        replay(trainer, sampled)
        gradients = note_gradients(trainer)
        found.append((without_clocks(trainer.train_step()), gradients, lora_of(trainer)))
    metrics, gradients, weights = found[0]
    assert metrics["ratio_max"] > 1 + 1e-4 and metrics["clip_high"] > 0
    for other_metrics, other_gradients, other_weights in found[1:]:
        assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        for name, tensor in weights.items():
            for ours, theirs in zip(gradients, other_gradients):
                assert close(ours[name], theirs[name])
            assert torch.allclose(other_weights[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def sampled(examples) -> Rollout:
    """A batch of the untrained policy: four groups of three."""
    return make_trainer(examples).rollout(4)


def test_micro_batches_change_nothing_without_a_reference_either(examples, sampled):
    found = []
    for micro_batch in (1, 3, 4):
        trainer = make_trainer(examples, beta=0.0, micro_batch=micro_batch)
        replay(trainer, sampled)
        found.append(without_clocks(trainer.train_step()))
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_the_gradient_is_clipped_and_its_norm_is_the_one_before(examples, sampled):
    norms = []
    for largest in (1e9, 1e-3):
        trainer = make_trainer(examples, max_grad_norm=largest)
        replay(trainer, sampled)
        noted = note_gradients(trainer)
        norms.append(trainer.train_step()["grad_norm"])
        after = math.sqrt(sum(g.square().sum().item() for g in noted[0].values()))
        assert after == pytest.approx(min(norms[0], largest), rel=1e-3)
    assert norms[0] == norms[1] > 1e-3


def test_only_lora_weights_are_trained(examples):
    """The base weights are the same to the last bit: neither trained, nor folded into."""
    trainer = make_trainer(examples)
    lora = {id(tensor) for tensor in trainer.parameters.values()}
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.train_step()
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, before[name]) == (id(tensor) not in lora), name
        assert tensor.grad is None


def test_the_learning_rate_by_hand(examples):
    """Warm-up over 2 of 6 steps, then down to 0 after the last: (6 - step) / (6 - 2)."""
    trainer = make_trainer(examples, steps=6, warmup_steps=2, lr=0.01, max_new_tokens=2)
    found = [trainer.train_step()["lr"] for _ in range(6)]
    assert found == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_without_a_number_of_steps_it_is_one_pass(examples):
    """5 questions, 2 in a step: 3 steps."""
    assert make_trainer(examples, steps=0, prompts_per_step=2).total_steps == 3
    assert make_trainer(examples, steps=7, prompts_per_step=2).total_steps == 7


# ------------------------------------------------------------------- which reward goes where


def test_rewards_are_asked_about_what_was_sampled(examples):
    """Texts without special tokens, prompts and lengths, all in the order of the questions; an
    answer ends with the first of the three EOS tokens.
    """
    trainer = make_trainer(examples, max_new_tokens=12)
    batch = trainer.rollout(4)
    ((asked, texts, prompts, lengths),) = trainer.rewards.calls
    assert asked == batch.examples and len({one.question for one in asked}) == 4
    for p, example in enumerate(asked):
        assert batch.prompts[p] == trainer.prompts(example)
        assert prompts[p] == TOKENIZER.decode(batch.prompts[p])
        assert prompts[p].startswith("<s>") and prompts[p].endswith(example.question)
        for g, tokens in enumerate(batch.tokens[p]):
            assert texts[p][g] == TOKENIZER.decode(tokens, skip_special_tokens=True)
            assert lengths[p][g] == len(tokens)
            assert not EOS & set(tokens[:-1])
            assert batch.finished[p, g] == (tokens[-1] in EOS)
    ends = {one[-1] for group in batch.tokens for one in group}
    assert len(EOS & ends) > 1 and not batch.finished.all()
    assert torch.allclose(batch.total, batch.terms[..., 0] + 0.5 * batch.terms[..., 1])


def test_each_prompt_is_trained_with_its_own_rewards(examples, judge, monkeypatch):
    """Two prompts get the same three answers, of which the first is right for the one about
    singers, the second for the one about shops: advantages of 2/3 for the right one and -1/3 for
    the others. With the two groups exchanged, or in the order AABB, the gradient would be another.
    """
    answers = [TOKENIZER.encode(text) + [1] for text in (QUERIES[0], QUERIES[3], "how many")]

    def scripted(model, prompts, *_):
        tokens = [answers] * len(prompts)
        logprobs = completion_logprobs(model, prompts, tokens).detach()
        return Samples(tokens, logprobs, torch.ones(len(prompts), 3, dtype=torch.bool))

    monkeypatch.setattr(grpo.trainer, "sample_groups", scripted)
    rewards = Rewards(judge, None, {"execution": 1.0})
    changes = dict(prompts_per_step=2, micro_batch=1, beta=0.0, max_grad_norm=1e9)
    trainer = make_trainer(examples[:2], rewards, **changes)
    batch = trainer.rollout(2)
    right = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0]]) / 3
    if batch.examples[0].db_id == "shops":
        right = right.flip(0)
    assert torch.allclose(batch.total, right + 1 / 3)
    replay(trainer, batch)
    _, expected = plain_step(trainer.model, batch, right, trainer.config)
    _, exchanged = plain_step(trainer.model, batch, right.flip(0), trainer.config)
    noted = note_gradients(trainer)
    trainer.train_step()
    assert all(close(gradient, expected[name]) for name, gradient in noted[0].items())
    assert not any(close(gradient, exchanged[name], 0.02) for name, gradient in noted[0].items())


# ---------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.0},
        {"updates_per_batch": 2},
        {"dynamic_sampling": 2},
        {"mask_truncated": True},
        *({"recipe": recipe} for recipe in RECIPES),
    ],
)
def test_every_metric_is_there_and_finite(examples, changes):
    trainer = make_trainer(examples, **changes)
    terms = {f"reward/{name}{std}" for name in ("long", "short") for std in ("", "_std")}
    for step in (1, 2):
        metrics = trainer.train_step()
        assert set(metrics) == PROMISED | terms
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["step"] == step and metrics["skipped"] == 0
        assert metrics["kl"] > 0 and metrics["entropy"] > 0 and metrics["grad_norm"] > 0
        assert all(metrics[name] > 0 for name in CLOCKS)
        assert 0 < metrics["sampler_gap"] <= metrics["sampler_gap_max"] < 1e-4


def test_failures_of_custom_rewards_are_metrics(examples):
    trainer = make_trainer(examples)
    trainer.rewards.failures = lambda: {"reward_failures/mine": 3}
    assert trainer.train_step()["reward_failures/mine"] == 3


def test_reward_metrics_by_hand(examples, sampled):
    """Two groups of two. `long` is 1 for one completion of four: mean 1/4, and its std over the
    batch is sqrt((0.75^2 + 3 * 0.25^2) / 3) = 0.5. `short` is 1 throughout. The totals, long +
    short / 2, are (1.5, 0.5) and (0.5, 0.5): mean 0.75; the stds within the groups are
    sqrt(2 * 0.5^2) = 0.7071 and 0, their mean 0.3536.
    """
    batch = sampled.select([0, 1])
    batch.tokens = [group[:2] for group in batch.tokens]
    batch.logprobs = [group[:2] for group in batch.logprobs]
    batch.finished = torch.tensor([[True, False], [True, True]])
    batch.terms = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    batch.total = batch.terms @ WordRewards.weights
    trainer = make_trainer(examples, prompts_per_step=2)
    replay(trainer, batch)
    metrics = trainer.train_step()
    expected = {
        "reward": 0.75,
        "reward_std": math.sqrt(0.5) / 2,
        "reward/long": 0.25,
        "reward/long_std": 0.5,
        "reward/short": 1.0,
        "reward/short_std": 0.0,
        "groups_without_signal": 0.5,
        "groups_sampled": 2,
        "truncated": 0.25,
        "completion_length": sum(len(one) for group in batch.tokens for one in group) / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_tokens_per_second(examples):
    """Every token sampled and rewarded, and every token trained on, by the time that took."""
    trainer = make_trainer(examples)
    metrics = trainer.train_step()
    ((*_, lengths),) = trainer.rewards.calls
    tokens = sum(map(sum, lengths))
    for phase in ("sample", "reward", "train"):
        found = metrics[f"{phase}_seconds"] * metrics[f"{phase}_tokens_per_second"]
        assert found == pytest.approx(tokens)


def test_without_beta_the_kl_is_that_of_the_first_group(examples, monkeypatch):
    """k3 under the policy that sampled, over the tokens of the first group; the reference sees no
    other prompt.
    """
    trainer = make_trainer(examples, beta=0.0, updates_per_batch=2)
    batch = trainer.rollout(4)
    replay(trainer, batch)
    alone = Config(beta=0.0)
    expected, _ = plain_step(trainer.model, batch.select([0]), torch.zeros(1, 3), alone)
    passes = note_passes(monkeypatch, trainer.model)
    assert trainer.train_step()["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert expected["kl"] > 1e-3
    assert [prompts for with_lora, prompts in passes if not with_lora] == [1]


# ------------------------------------------------------------------ several updates on a batch


def test_two_updates_on_a_batch(examples, monkeypatch):
    """The first is on policy; the second has the log-probs from before the first as old ones. It
    is sampled once, and each micro-batch passes through the reference once.
    """
    trainer = make_trainer(examples, updates_per_batch=2)
    losses = note_calls(monkeypatch, "policy_loss")
    samples = note_calls(monkeypatch, "sample_groups")
    passes = note_passes(monkeypatch, trainer.model)
    untrained = make_policy().model
    metrics = trainer.train_step()
    assert len(samples) == 1 and trainer.cursor == 4
    assert passes == [(True, 2), (False, 2), (True, 2), (False, 2), (True, 2), (True, 2)]
    tokens = samples[0][1].tokens
    ratios = []
    for update, (arguments, (_, stats)) in enumerate(losses):
        part = slice(update % 2 * 2, update % 2 * 2 + 2)
        logprobs, old, advantages, weights, reference = arguments[:5]
        prompts = samples[0][0][1][part]
        with torch.no_grad():
            expected = completion_logprobs(untrained, prompts, tokens[part])
            with lora_disabled(untrained):
                base = completion_logprobs(untrained, prompts, tokens[part])
        assert torch.allclose(old, expected, atol=1e-6)
        assert torch.allclose(reference, base, atol=1e-6)
        assert not old.requires_grad and not reference.requires_grad
        ratios.append(stats["ratio"][weights > 0])
        if update < 2:
            assert torch.equal(logprobs, old) and (ratios[-1] == 1).all()
        else:
            assert (logprobs - old).abs().max() > 1e-3
            assert torch.allclose(ratios[-1], (logprobs - old).exp()[weights > 0])
    second = torch.cat(ratios[2:])
    assert metrics["ratio"] == pytest.approx((1 + second.mean().item()) / 2)
    assert metrics["ratio_max"] == pytest.approx(second.max().item()) and second.max() > 1


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3iw"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_settings_of_the_loss_reach_it(examples, sampled, monkeypatch, ratio, kl):
    """The second update's losses, micro-batch by micro-batch, are those of the loss function with
    every setting named; ratios are on either side of both limits.
    """
    named = dict(beta=0.3, kl=kl, epsilon_low=0.01, epsilon_high=0.02)
    trainer = make_trainer(examples, **named, ratio=ratio, updates_per_batch=2)
    replay(trainer, sampled)
    losses = note_calls(monkeypatch, "policy_loss")
    metrics = trainer.train_step()
    for arguments, (loss, stats) in losses[2:]:
        expected, by_name = policy_loss(*arguments[:5], ratio_kind=ratio, **named)
        assert torch.equal(loss, expected)
        assert same({name: stats[name] for name in by_name}, by_name)
    ratios = torch.cat([stats["ratio"].flatten() for _, (_, stats) in losses[2:]])
    assert (ratios < 0.99).any() and (ratios > 1.02).any()
    seen = [loss.item() for _, (loss, _) in losses]
    assert metrics["loss"] == pytest.approx(sum(seen) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_the_advantages_are_of_the_kind_that_is_set(examples, sampled, monkeypatch, kind):
    """The four kinds differ on this batch, and `per_reward` weighs the terms as the rewards do."""
    losses = note_calls(monkeypatch, "policy_loss")
    trainer = make_trainer(examples, advantage=kind)
    replay(trainer, sampled)
    trainer.train_step()
    found = torch.cat([arguments[2] for arguments, _ in losses])
    for other in ADVANTAGES:
        if other == "per_reward":
            expected = group_advantages(sampled.terms, other, torch.tensor([1.0, 0.5]))
        else:
            expected = group_advantages(sampled.total, other)
        assert torch.equal(found, expected) == (kind == other)


def test_more_updates_move_further(examples, sampled):
    """Each update is an optimizer step of its own, at the same learning rate."""
    moved = []
    for updates in (1, 2, 4):
        trainer = make_trainer(examples, updates_per_batch=updates, steps=2)
        replay(trainer, sampled)
        before, noted = lora_of(trainer), note_gradients(trainer)
        assert trainer.train_step()["lr"] == 5e-3 and len(noted) == updates
        moved.append(sum((t - before[n]).norm() for n, t in trainer.parameters.items()))
    assert moved[0] < moved[1] < moved[2]


# ------------------------------------------------------------------------ truncated completions


def with_other_tokens(batch: Rollout, change: torch.Tensor) -> Rollout:
    """The batch with other words where ``change`` (P, G) says so."""
    batch = copy.deepcopy(batch)
    for p, g in change.nonzero().tolist():
        batch.tokens[p][g] = [(token + 3) % 20 + 4 for token in batch.tokens[p][g]]
    return batch


@pytest.mark.parametrize("mask_truncated", [True, False])
def test_masked_completions_get_no_gradient(examples, sampled, mask_truncated):
    """What they say makes no difference to the step if they are masked, and all the difference if
    not. Their rewards still count in the baseline.
    """
    cut = ~sampled.finished
    assert cut.any() and not cut.all()
    gradients = []
    for batch in (sampled, with_other_tokens(sampled, cut)):
        trainer = make_trainer(examples, mask_truncated=mask_truncated, max_grad_norm=1e9)
        replay(trainer, batch)
        gradients.append(note_gradients(trainer))
        trainer.train_step()
    (first,), (second,) = gradients
    equal = all(close(first[name], second[name]) for name in first)
    assert equal == mask_truncated


def test_masked_completions_stay_in_the_baseline(examples, sampled, monkeypatch):
    """A better cut completion lowers the advantage of the others."""
    cut = ~sampled.finished
    seen = []
    for bonus in (0.0, 1.0):
        batch = copy.deepcopy(sampled)
        batch.total = batch.total + bonus * cut
        losses = note_calls(monkeypatch, "policy_loss")
        trainer = make_trainer(examples, mask_truncated=True)
        replay(trainer, batch)
        trainer.train_step()
        advantages = torch.cat([arguments[2] for arguments, _ in losses])
        assert torch.equal(advantages, group_advantages(batch.total, "centered"))
        weights = [arguments[3] for arguments, _ in losses]
        for one, part in zip(weights, (slice(0, 2), slice(2, 4))):
            assert torch.equal((one > 0).any(-1), sampled.finished[part])
        seen.append(advantages)
    mixed = cut.any(1, keepdim=True) & sampled.finished
    assert mixed.any() and (seen[1][mixed] < seen[0][mixed]).all()


def test_a_batch_of_truncated_completions_only(examples, sampled):
    """A finite step without a gradient."""
    batch = copy.deepcopy(sampled)
    batch.finished[:] = False
    trainer = make_trainer(examples, mask_truncated=True)
    replay(trainer, batch)
    before, noted = lora_of(trainer), note_gradients(trainer)
    metrics = trainer.train_step()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["loss"] == metrics["grad_norm"] == metrics["skipped"] == 0
    assert metrics["truncated"] == 1
    assert all((gradient == 0).all() for gradient in noted[0].values())
    assert same(lora_of(trainer), before)


# --------------------------------------------------------------------- which questions are next


def test_an_epoch_is_a_permutation_of_its_own(examples):
    trainer = make_trainer(examples)
    trainer.examples = list(range(40))
    epochs = [trainer.next_examples(40) for _ in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = make_trainer(examples, seed=7)
    other.examples = list(range(40))
    assert other.next_examples(40) != epochs[0] != list(range(40))


@ANY_SPEED
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8), st.integers(0, 3))
def test_no_question_is_skipped_or_repeated(size, counts, seed):
    """However many are drawn at a time: every epoch has each question once, in the order that one
    long draw gives.
    """
    drawn, whole = Drawer(size, seed), Drawer(size, seed)
    found = [one for count in counts for one in drawn.next_examples(count)]
    assert drawn.cursor == len(found) == sum(counts)
    assert found == whole.next_examples(sum(counts))
    for start in range(0, len(found), size):
        epoch = found[start : start + size]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(size))


class Drawer(Trainer):
    """As much of a trainer as it takes to draw questions."""

    def __init__(self, size: int, seed: int):
        self.examples, self.config, self.cursor = list(range(size)), Config(seed=seed), 0


# --------------------------------------------------------------------------- dynamic sampling


def note_batches(trainer: Trainer) -> list[Rollout]:
    """A list of the batches that are trained on."""
    noted, updates = [], trainer._updates

    def noting(batch, advantages):
        noted.append(batch)
        return updates(batch, advantages)

    trainer._updates = noting
    return noted


def test_dynamic_sampling_with_real_rewards(examples, judge):
    """Groups in which all queries fail, or all do equally well, are replaced."""
    rewards = Rewards(judge, None, {"execution": 1.0, "syntax": 0.1})
    trainer = make_trainer(examples, rewards, dynamic_sampling=3, max_new_tokens=4)
    batches = note_batches(trainer)
    steps = [trainer.train_step() for _ in range(4)]
    for metrics, batch in zip(steps, batches):
        assert (batch.total.amax(1) > batch.total.amin(1)).all()
        assert 4 <= metrics["groups_sampled"] <= 16 and metrics["skipped"] == 0
        silent = metrics["groups_without_signal"] * metrics["groups_sampled"]
        assert silent == pytest.approx(metrics["groups_sampled"] - len(batch.examples))
        assert metrics["reward"] == pytest.approx(batch.total.mean().item())
        tokens = metrics["completion_length"] * batch.total.numel()
        trained = metrics["train_seconds"] * metrics["train_tokens_per_second"]
        made = metrics["sample_seconds"] * metrics["sample_tokens_per_second"]
        assert trained == pytest.approx(tokens)  # the others were sampled, too
        assert made == pytest.approx(tokens * metrics["groups_sampled"] / len(batch.examples))
    assert trainer.cursor == sum(metrics["groups_sampled"] for metrics in steps)
    assert trainer.cursor > 16  # some had to be replaced
    assert any(metrics["reward/execution"] > 0 for metrics in steps)


def test_questions_go_on_where_dynamic_sampling_stopped(examples):
    """Every group that is sampled uses up a question; none is asked twice in an epoch."""
    trainer = make_trainer(examples, RareRewards(), dynamic_sampling=2, prompts_per_step=3)
    steps = [trainer.train_step() for _ in range(3)]
    asked = [example.question for call in trainer.rewards.calls for example in call[0]]
    assert len(asked) == trainer.cursor == sum(metrics["groups_sampled"] for metrics in steps) > 9
    for start in range(0, len(asked), 5):
        epoch = asked[start : start + 5]
        assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_smaller_batch_is_trained_as_if_it_was_asked_for(examples, sampled, loss):
    """Groups 1 and 3 of 4 have signal, and nothing replaces the others: the step is that of these
    two alone, to the last bit.
    """
    whole = copy.deepcopy(sampled)
    whole.terms[[0, 2]] = 0.25
    whole.total = whole.terms @ WordRewards.weights
    assert whole.has_signal().tolist() == [False, True, False, True]
    found = []
    for prompts, rounds, batches in (
        (4, 1, [whole, whole.select([0, 2])]),
        (2, 0, [whole.select([1, 3])]),
    ):
        trainer = make_trainer(
            examples, loss=loss, prompts_per_step=prompts, dynamic_sampling=rounds
        )
        replay(trainer, *batches)
        found.append((without_clocks(trainer.train_step()), lora_of(trainer)))
    (metrics, weights), (alone, expected) = found
    assert (metrics.pop("groups_sampled"), alone.pop("groups_sampled")) == (6, 2)
    assert metrics.pop("groups_without_signal") == pytest.approx(4 / 6)
    assert alone.pop("groups_without_signal") == 0
    assert metrics == alone and same(weights, expected)


def test_without_any_signal_a_step_changes_nothing(examples, sampled):
    silent = copy.deepcopy(sampled)
    silent.terms[:] = 0.5
    silent.total = silent.terms @ WordRewards.weights
    trainer = make_trainer(examples, beta=0.0, dynamic_sampling=2)
    replay(trainer, silent, silent, silent)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["groups_sampled"] == 12 and metrics["groups_without_signal"] == 1
    assert metrics["grad_norm"] == 0 and metrics["skipped"] == 0
    assert same(lora_of(trainer), before)


# ------------------------------------------------------------------------------------ guards


def spoil(monkeypatch, *bad: bool) -> None:
    """Makes the advantages of these steps NaN."""
    waiting, function = list(bad), grpo.trainer.group_advantages

    def spoilt(*arguments):
        return function(*arguments) * (math.nan if waiting.pop(0) else 1)

    monkeypatch.setattr(grpo.trainer, "group_advantages", spoilt)


def trained_state(trainer: Trainer) -> dict:
    state = copy.deepcopy(trainer.state_dict())
    return {name: state[name] for name in ("lora", "optimizer")}


def test_an_update_with_a_nan_is_skipped(examples, monkeypatch, caplog):
    """Weights and optimizer stay as they were, and the run goes on: data, schedule and all."""
    trainer = make_trainer(examples)
    spoil(monkeypatch, False, True, False)
    trainer.train_step()
    before = trained_state(trainer)
    assert not caplog.records
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and not math.isfinite(metrics["loss"])
    assert same(trained_state(trainer)["lora"], before["lora"])
    states = trained_state(trainer)["optimizer"]["state"], before["optimizer"]["state"]
    assert same(*states)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "step 2" in record.getMessage()
    assert (trainer.step, trainer.cursor, trainer.bad_updates) == (2, 8, 1)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 0 and all(map(math.isfinite, metrics.values()))
    assert not same(trained_state(trainer)["lora"], before["lora"])
    assert trainer.bad_updates == 0 and metrics["lr"] == pytest.approx(5e-3 * 2 / 3)


def test_an_infinite_loss_is_skipped_whatever_its_gradient(examples, monkeypatch):
    function = grpo.trainer.policy_loss

    def infinite(*arguments):
        loss, stats = function(*arguments)
        return loss + math.inf, stats

    monkeypatch.setattr(grpo.trainer, "policy_loss", infinite)
    trainer = make_trainer(examples)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and math.isfinite(metrics["grad_norm"])
    assert same(lora_of(trainer), before)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_gradient_of_a_finite_loss_is_skipped(examples, value):
    trainer = make_trainer(examples)
    before = lora_of(trainer)
    first = next(iter(trainer.parameters.values()))
    handle = first.register_hook(lambda gradient: torch.full_like(gradient, value))
    metrics = trainer.train_step()
    assert math.isfinite(metrics["loss"]) and not math.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1 and same(lora_of(trainer), before)
    handle.remove()
    assert trainer.train_step()["skipped"] == 0


def test_an_infinite_weight_is_noticed(examples):
    """It turns up between sampling and training."""

    def damage():
        list(trainer.parameters.values())[1].data[0, 0] = math.inf

    trainer = make_trainer(examples, WordRewards(damage))
    before = lora_of(trainer)
    assert trainer.train_step()["skipped"] == 1
    changed = [n for n, t in trainer.parameters.items() if not torch.equal(t, before[n])]
    assert changed == [list(trainer.parameters)[1]]


def test_three_bad_updates_in_a_row_end_a_run(examples, monkeypatch):
    trainer = make_trainer(examples)
    spoil(monkeypatch, True, True, True)
    assert [trainer.train_step()["skipped"] for _ in range(2)] == [1, 1]
    before = lora_of(trainer)
    with pytest.raises(UserError, match="step 3.*3 updates in a row.*--lr"):
        trainer.train_step()
    assert same(lora_of(trainer), before)


def test_a_good_update_in_between_resets_the_count(examples, monkeypatch):
    trainer = make_trainer(examples)
    bad = [True, True, False, True, True, False]
    spoil(monkeypatch, *bad)
    assert [trainer.train_step()["skipped"] for _ in bad] == list(map(int, bad))


def test_bad_updates_are_counted_across_a_resume(examples, monkeypatch):
    trainer = make_trainer(examples)
    spoil(monkeypatch, True, True, True)
    trainer.train_step(), trainer.train_step()
    resumed = make_trainer(examples)
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(UserError, match="step 3"):
        resumed.train_step()


def test_one_bad_batch_does_not_end_a_run_of_many_updates(examples, monkeypatch, caplog):
    """With the same weights, the other updates on it could only fail in the same way; they are
    left out, and it is one in a row.
    """
    trainer = make_trainer(examples, updates_per_batch=4)
    spoil(monkeypatch, True, False)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 4 and trainer.bad_updates == 1
    assert same(lora_of(trainer), before) and len(caplog.records) == 1
    assert trainer.train_step()["skipped"] == 0


def test_updates_before_a_bad_one_are_kept(examples, sampled):
    """The second of three fails: the first is made, and the metrics are its own and the second's
    but not the third's, which is not made.
    """
    trainer = make_trainer(examples, updates_per_batch=3)
    replay(trainer, sampled)
    single = make_trainer(examples)
    replay(single, sampled)
    expected = single.train_step()
    noted, first = note_gradients(trainer), next(iter(trainer.parameters.values()))
    trainer.optimizer.register_step_post_hook(
        lambda *_: first.register_hook(lambda gradient: gradient * math.nan)
    )
    metrics = trainer.train_step()
    assert metrics["skipped"] == 2 and len(noted) == 1
    assert same(lora_of(trainer), lora_of(single))
    assert not math.isfinite(metrics["grad_norm"])
    assert metrics["entropy"] == pytest.approx(expected["entropy"], rel=0.05)


# ------------------------------------------------------------- do sampler and trainer agree?


def gap_warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "sampler and trainer" in r.getMessage()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampler_and_trainer_agree(examples, dtype, caplog):
    trainer = make_trainer(examples, policy=make_policy(dtype=dtype))
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    assert all(trainer.train_step()["sampler_gap"] < limit for _ in range(2))
    assert not gap_warnings(caplog)
    assert {tensor.dtype for tensor in trainer.parameters.values()} == {torch.float32}


def falsify(monkeypatch, by: float) -> None:
    """The sampler says log-probs that are off by this much."""
    function = grpo.trainer.sample_groups

    def wrong(*arguments):
        samples = function(*arguments)
        return Samples(samples.tokens, samples.logprobs + by, samples.finished)

    monkeypatch.setattr(grpo.trainer, "sample_groups", wrong)


def test_a_sampler_that_is_wrong_is_reported_once(examples, monkeypatch, caplog):
    """By how much, too: mean and maximum are what the log-probs are off by."""
    falsify(monkeypatch, 0.01)
    trainer = make_trainer(examples)
    for _ in range(2):
        metrics = trainer.train_step()
        assert metrics["sampler_gap"] == pytest.approx(0.01, abs=1e-5)
        assert metrics["sampler_gap_max"] == pytest.approx(0.01, abs=1e-4)
    (message,) = gap_warnings(caplog)
    assert "0.01" in message and "1e-04 in float32" in message


def test_half_precision_is_given_more_room(examples, monkeypatch, caplog):
    falsify(monkeypatch, 0.1)
    make_trainer(examples, policy=make_policy(dtype=torch.bfloat16)).train_step()
    (message,) = gap_warnings(caplog)
    assert "1e-02 in bfloat16" in message


def test_a_model_that_changes_after_sampling_is_reported(examples, caplog):
    def perturb():
        with torch.no_grad():
            for tensor in trainer.parameters.values():
                tensor.add_(0.02)

    trainer = make_trainer(examples, WordRewards(perturb))
    gaps = [trainer.train_step()["sampler_gap"] for _ in range(2)]
    assert min(gaps) > 1e-4 and len(gap_warnings(caplog)) == 1


def test_a_batch_without_a_trained_token_is_no_check(examples, sampled, monkeypatch, caplog):
    """If the first batch is masked altogether, the next one is looked at."""
    falsify(monkeypatch, 0.01)
    trainer = make_trainer(examples, mask_truncated=True)
    sample, silent = trainer.rollout, copy.deepcopy(sampled)
    silent.finished[:] = False
    replay(trainer, silent)
    assert trainer.train_step()["sampler_gap"] == 0 and not gap_warnings(caplog)
    trainer.rollout = sample
    trainer.train_step()
    assert len(gap_warnings(caplog)) == 1


# ------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("changes", "questions"),
    [
        ({}, 5),
        ({"updates_per_batch": 2}, 5),
        ({"dynamic_sampling": 2}, 5),
        ({"recipe": "gspo"}, 5),
        ({"recipe": "dapo"}, 5),
        ({"prompts_per_step": 2, "mask_truncated": True}, 3),  # resumes in the middle of an epoch
    ],
)
def test_resumed_is_as_if_never_stopped(examples, tmp_path, changes, questions):
    """Four steps, and two, a checkpoint and two more in a trainer whose model has other LoRA
    weights: the same metrics and weights to the last bit, wherever an epoch ends.
    """
    rare = RareRewards if "dynamic_sampling" in changes else WordRewards

    def trainer(seed: int = 0) -> Trainer:
        return make_trainer(examples[:questions], rare(), make_policy(seed), **changes)

    whole, first, second = trainer(), trainer(), trainer(seed=1)
    expected = [without_clocks(whole.train_step()) for _ in range(4)]
    found = [without_clocks(first.train_step()) for _ in range(2)]
    save_state(tmp_path / "state.pt", first.state_dict())
    torch.manual_seed(123)  # the state of the global generator is of no account
    second.load_state_dict(load_state(tmp_path / "state.pt"))
    found += [without_clocks(second.train_step()) for _ in range(2)]
    assert found == expected
    assert same(lora_of(second), lora_of(whole))
    assert same(second.state_dict(), whole.state_dict())
    if questions == 3:
        assert first.cursor % 3 and whole.cursor > 6


def test_a_state_is_a_snapshot(examples):
    """Training on does not change it, neither here nor in the trainer that it was loaded into: it
    can be gone back to again and again.
    """
    trainer, other = make_trainer(examples), make_trainer(examples, policy=make_policy(1))
    trainer.train_step()
    state = trainer.state_dict()
    before = copy.deepcopy(state)
    expected = without_clocks(trainer.train_step()), lora_of(trainer)
    assert same(state, before)
    for one in (other, trainer, trainer):
        one.load_state_dict(state)
        assert same((without_clocks(one.train_step()), lora_of(one)), expected)
        assert same(state, before)


# ------------------------------------------------------------------------------------ recipes


def test_without_a_recipe_it_is_the_defaults():
    assert Config.with_recipe() == Config() and Config().recipe == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_applied(recipe):
    """All that it sets, and nothing else."""
    names = {f.name for f in fields(Config)}
    preset = RECIPES[recipe]
    before = copy.deepcopy(RECIPES)
    assert set(preset) <= names - {"recipe"}
    config = Config.with_recipe(recipe)
    assert config.recipe == recipe and config.reward == WEIGHTS | preset.get("reward", {})
    for name in names - {"recipe", "reward"}:
        assert getattr(config, name) == preset.get(name, getattr(Config(), name))
    config.reward["execution"] = 9.0
    assert before == RECIPES and Config().reward == WEIGHTS  # the presets are not handed out


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_given_beside_a_recipe_wins(recipe):
    preset = RECIPES[recipe]
    changed = 0
    for name in set(preset) - {"reward"}:
        default = getattr(Config(), name)
        assert getattr(Config.with_recipe(recipe, **{name: default}), name) == default
        changed += preset[name] != default
    assert changed  # or the loop above would show nothing


def test_rewards_are_merged_by_name():
    config = Config.with_recipe("dapo", reward={"schema": 0.0, "mine.py:one": 2.0})
    assert config.reward == WEIGHTS | {"overlong": 0.4, "schema": 0.0, "mine.py:one": 2.0}
    assert Config.with_recipe("dapo", reward={"overlong": 0.1}).reward["overlong"] == 0.1
    assert Config.with_recipe(reward={"syntax": 0.2}).reward == WEIGHTS | {"syntax": 0.2}


@pytest.mark.parametrize("recipe", ["", *RECIPES])
def test_every_recipe_trains_with_real_rewards(examples, judge, recipe):
    """Its rewards are accepted, too; those that need an encoder are left out."""
    config = Config.with_recipe(recipe, reward={"semantic": 0.0})
    rewards = Rewards(judge, None, config.reward, longest=4, buffer=2)
    trainer = make_trainer(examples, rewards, recipe=recipe, max_new_tokens=4)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 0 and all(map(math.isfinite, metrics.values()))
    assert ("reward/overlong" in metrics) == (recipe == "dapo")
