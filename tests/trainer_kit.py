"""What the tests of the training loop share: a tiny policy that writes whole queries, rewards that
depend on its words, and eyes on what a trainer computes.
"""

import math

import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import grpo.trainer
from grpo.config import Config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.lora import add_lora, lora_disabled, lora_layers, lora_parameters
from grpo.models import Policy
from grpo.rollout import Rollout
from grpo.trainer import Trainer
from sqlenv.verifier import Verdict

ANY_SPEED = settings(deadline=None)  # a busy machine is no failure
CLOCKS = tuple(
    f"{phase}_{unit}"
    for phase in ("sample", "reward", "train")
    for unit in ("seconds", "tokens_per_second")
)
PROMISED = {
    *("step", "reward", "reward_std", "frac_reward_zero_std", "groups_sampled"),
    *("groups_trained", "skipped", "repeated_answers"),
    *(
        "loss",
        "entropy",
        "kl",
        "ratio",
        "ratio_max",
        "clip_ratio/low",
        "clip_ratio/high",
        "grad_norm",
        "lr",
    ),
    *("sampling_logp_difference", "sampling_logp_difference_max", "completion_length", "truncated"),
    *CLOCKS,
}
LOSSES = ("token", "sequence", "constant")
RATIOS = ("token", "sequence", "cispo")
ADVANTAGES = ("centered", "group", "rloo", "maxrl", "per_reward")

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
        add_lora(model.to(dtype), rank=3, alpha=6, seed=seed)
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

    def __call__(self, examples, texts, *, prompts, lengths) -> torch.Tensor:
        self.calls.append((examples, texts, prompts, lengths))
        if self.hook:
            self.hook()
        return torch.tensor(
            [
                [self.terms(example.question, text, length) for text, length in zip(*group)]
                for example, *group in zip(examples, texts, lengths)
            ]
        )

    def score(self, examples, texts, **options):
        verdicts = [[Verdict(text, None, False) for text in group] for group in texts]
        return self(examples, texts, **options), verdicts

    def run_gold(self, examples) -> list:
        return [None] * len(examples)

    def failures(self) -> dict:
        return {}


class RareRewards(WordRewards):
    """Signal only for groups in which some answers, not all, have the word "old"."""

    names = ["old"]
    weights = torch.tensor([1.0])

    def terms(self, question, text, length):
        return [float("old" in text.split())]


def make_trainer(
    examples, rewards=None, policy=None, distributed=SINGLE_PROCESS, **changes
) -> Trainer:
    small = dict(prompts_per_step=4, group_size=3, max_new_tokens=8, micro_batch=2, steps=4)
    config = Config.with_recipe(**small | dict(lr=5e-3, warmup_steps=1) | changes)
    return Trainer(policy or make_policy(), rewards or WordRewards(), examples, config, distributed)


def replay(trainer: Trainer, *batches: Rollout) -> None:
    """The trainer gets these batches instead of sampling some."""
    waiting = list(batches)

    def rollout(count: int) -> Rollout:
        for name in ("sample", "reward"):
            with trainer.timer.phase(name):
                pass
        return waiting.pop(0)

    trainer.sample_and_score = rollout


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

    def noting(model, prompt_ids, *arguments, **keywords):
        noted.append((next(lora_layers(model))[1].enabled, len(prompt_ids)))
        return function(model, prompt_ids, *arguments, **keywords)

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
    everyone = [(p, g) for p, group in enumerate(batch.completion_ids) for g in range(len(group))]
    trained = [(p, g) for p, g in everyone if batch.finished[p, g] or not config.mask_truncated]
    total = sum(len(batch.completion_ids[p][g]) for p, g in trained)
    objective, metrics = torch.zeros(()), {"entropy": 0.0, "kl": 0.0}
    for p, g in trained:
        prompt, tokens = batch.prompt_ids[p], batch.completion_ids[p][g]
        logprobs, entropy = naive_logprobs(model, prompt, tokens, config.temperature)
        with torch.no_grad(), lora_disabled(model):
            reference, _ = naive_logprobs(model, prompt, tokens, config.temperature)
        ratio = (logprobs - logprobs.detach()).exp()
        k3 = (reference - logprobs).exp() + logprobs - reference - 1
        if not batch.sampled_mask()[p, g]:  # gold
            k3 = 0 * k3
        weight = {
            "token": 1 / total,
            "sequence": 1 / len(everyone) / len(tokens),
            "constant": 1 / len(everyone) / config.max_new_tokens,
        }[config.loss_aggregation]
        own = advantages[p, g]  # of the completion, or of its tokens
        terms = ratio * (own[: len(tokens)] if own.dim() else own) - config.beta * ratio * k3
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
