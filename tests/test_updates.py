"""Several updates on a batch, truncated completions, the order of questions, dynamic sampling."""

import copy
import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_kit import (
    ADVANTAGES,
    ANY_SPEED,
    LOSSES,
    RATIOS,
    RareRewards,
    WordRewards,
    close,
    lora_of,
    make_policy,
    make_trainer,
    note_calls,
    note_gradients,
    note_passes,
    replay,
    same,
    without_clocks,
)

import grpo.questions
import grpo.rollout
from grpo.advantages import group_advantages
from grpo.dynamic_sampling import select_groups
from grpo.logprobs import completion_logprobs
from grpo.lora import lora_disabled
from grpo.loss import policy_loss
from grpo.questions import QuestionStream
from grpo.rewards import Rewards
from grpo.rollout import Rollout
from grpo.sampler import Samples, _uniforms, sample_groups
from grpo.trainer import Trainer

# torch warns when a step's only update is skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

# ------------------------------------------------------------------ several updates on a batch


def note_samples(monkeypatch) -> list[tuple[list[list[int]], Samples]]:
    """A list of (prompt_ids, samples) of every call of ``sample_groups``."""
    noted = []

    def noting(model, prompt_ids, **options):
        samples = sample_groups(model, prompt_ids, **options)
        noted.append((prompt_ids, samples))
        return samples

    monkeypatch.setattr(grpo.rollout, "sample_groups", noting)
    return noted


def test_two_updates_on_a_batch(examples, monkeypatch):
    """The first is on policy; the second's old log-probs are those from before the first. The batch
    is sampled once, and each micro-batch passes through the reference once.
    """
    trainer = make_trainer(examples, num_iterations=2)
    losses = note_calls(monkeypatch, "policy_loss")
    sampled = note_samples(monkeypatch)
    passes = note_passes(monkeypatch, trainer.model)
    untrained = make_policy().model
    metrics = trainer.train_step()
    assert len(sampled) == 1 and trainer.questions.cursor == 4
    assert passes == [(False, 2), (False, 2), (True, 2), (True, 2), (True, 2), (True, 2)]
    ((prompt_ids, samples),) = sampled
    ratios = []
    for update, (arguments, (_, stats)) in enumerate(losses):
        part = slice(update % 2 * 2, update % 2 * 2 + 2)
        logprobs, old, advantages, weights, reference = arguments[:5]
        batch = prompt_ids[part], samples.completion_ids[part]
        with torch.no_grad():
            expected = completion_logprobs(untrained, *batch)
            with lora_disabled(untrained):
                base = completion_logprobs(untrained, *batch)
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


@pytest.mark.parametrize("kl", ["k2", "k3", "k3iw"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_settings_of_the_loss_reach_it(examples, sampled, monkeypatch, ratio, kl):
    """The losses of the second update's micro-batches are those of the loss function with every
    setting given by name; there are ratios below and above both limits.
    """
    named = dict(beta=0.3, kl=kl, epsilon_low=0.01, epsilon_high=0.02)
    trainer = make_trainer(examples, **named, importance_sampling=ratio, num_iterations=2)
    replay(trainer, sampled)
    losses = note_calls(monkeypatch, "policy_loss")
    metrics = trainer.train_step()
    for arguments, (loss, stats) in losses[2:]:
        expected, by_name = policy_loss(*arguments[:5], importance_sampling=ratio, **named)
        assert torch.equal(loss, expected)
        assert same({name: stats[name] for name in by_name}, by_name)
    ratios = torch.cat([stats["ratio"].flatten() for _, (_, stats) in losses[2:]])
    assert (ratios < 0.99).any() and (ratios > 1.02).any()
    seen = [loss.item() for _, (loss, _) in losses]
    assert metrics["loss"] == pytest.approx(sum(seen) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_the_advantages_are_of_the_kind_that_is_set(examples, sampled, monkeypatch, kind):
    """The kinds differ on this batch; `per_reward` has the weights of the rewards."""
    losses = note_calls(monkeypatch, "policy_loss")
    trainer = make_trainer(examples, advantage=kind)
    replay(trainer, sampled)
    trainer.train_step()
    advantages = torch.cat([arguments[2] for arguments, _ in losses])[..., 0]
    weights = torch.tensor([1.0, 0.5])
    for other in ADVANTAGES:
        rewards = sampled.reward_terms if other == "per_reward" else sampled.rewards
        expected = group_advantages(rewards, kind=other, weights=weights)
        assert torch.equal(advantages, expected) == (kind == other)


class PartialRewards(WordRewards):
    """The first completion of each group has no `long`."""

    def __call__(self, examples, texts, **options):
        terms = super().__call__(examples, texts, **options)
        terms[:, 0, 0] = math.nan
        return terms


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_a_term_that_is_not_applicable_counts_for_no_one(examples, monkeypatch, kind):
    """The mean of the two others stands in for it. They are alone in the std of this term; the
    whole reward, which has another term, counts for all three.
    """
    losses = note_calls(monkeypatch, "policy_loss")
    trainer = make_trainer(examples, PartialRewards(), advantage=kind)
    batches, rollout = [], trainer.sample_and_score
    trainer.sample_and_score = lambda count: batches.append(rollout(count)) or batches[-1]
    metrics = trainer.train_step()
    (batch,) = batches
    terms = batch.reward_terms
    assert torch.allclose(terms[:, 0, 0], terms[:, 1:, 0].mean(1)) and math.isfinite(
        metrics["loss"]
    )
    applicable = torch.ones(4, 3, 2, dtype=torch.bool)
    applicable[:, 0, 0] = False
    options = {"kind": kind, "weights": WordRewards.weights}
    advantages = torch.cat([arguments[2] for arguments, _ in losses])[..., 0]
    if kind == "per_reward":
        assert not torch.equal(advantages, group_advantages(terms, **options))
        expected = group_advantages(terms, applicable=applicable, **options)
    else:
        expected = group_advantages(terms @ WordRewards.weights, **options)
    assert torch.equal(advantages, expected)


def test_more_updates_move_further(examples, sampled):
    """Each update is an optimizer step of its own, at the same learning rate."""
    moved = []
    for updates in (1, 2, 4):
        trainer = make_trainer(examples, num_iterations=updates, steps=2)
        replay(trainer, sampled)
        before, noted = lora_of(trainer), note_gradients(trainer)
        assert trainer.train_step()["lr"] == 5e-3 and len(noted) == updates
        moved.append(sum((t - before[n]).norm() for n, t in trainer.parameters.items()))
    assert moved[0] < moved[1] < moved[2]


# -------------------------------------------------------------------------------- minibatches


def test_each_minibatch_makes_an_update(examples, sampled, monkeypatch):
    """Four groups in two minibatches. The first makes the update that a batch of its two groups
    makes, the second the one of the other two after that, except that its old log-probs and its
    reference are those from before the first update. Metrics are means over tokens.
    """
    trainer, untrained = make_trainer(examples, minibatches=2, beta=0.5), make_policy().model
    replay(trainer, sampled)
    losses, noted = note_calls(monkeypatch, "policy_loss"), note_gradients(trainer)
    passes = note_passes(monkeypatch, trainer.model)
    metrics = trainer.train_step()
    # Both references, the old log-probs of the second half, and the two updates.
    assert passes == [(False, 2), (False, 2), (True, 2), (True, 2), (True, 2)]
    assert len(losses) == len(noted) == 2 and metrics["skipped"] == 0
    losses = list(losses)
    halves = select_groups(sampled, [0, 1]), select_groups(sampled, [2, 3])
    single = make_trainer(examples, beta=0.5, prompts_per_step=2)
    replay(single, halves[0])
    first = note_gradients(single)
    expected = single.train_step()
    assert same(noted[0], first[0])
    for (arguments, _), half in zip(losses, halves):
        _, old, advantages, weights, reference = arguments[:5]
        batch = half.prompt_ids, half.completion_ids
        with torch.no_grad():
            assert torch.equal(old, completion_logprobs(untrained, *batch))
            with lora_disabled(untrained):
                assert torch.equal(reference, completion_logprobs(untrained, *batch))
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        assert torch.equal(advantages[..., 0], group_advantages(half.rewards))
    ratios = [stats["ratio"][arguments[3] > 0] for arguments, (_, stats) in losses]
    assert (ratios[0] == 1).all() and (ratios[1] != 1).any()
    seen = [loss.item() for _, (loss, _) in losses]
    assert seen[0] == pytest.approx(expected["loss"], abs=1e-6)
    tokens = [(arguments[3] > 0).sum().item() for arguments, _ in losses]
    mean = (seen[0] * tokens[0] + seen[1] * tokens[1]) / sum(tokens)
    assert tokens[0] != tokens[1] and metrics["loss"] == pytest.approx(mean, abs=1e-6)


def test_passes_over_minibatches(examples, sampled, monkeypatch):
    """Three passes over two minibatches are six updates, in the order 0 1 0 1 0 1."""
    trainer = make_trainer(examples, minibatches=2, num_iterations=3)
    replay(trainer, sampled)
    losses = note_calls(monkeypatch, "policy_loss")
    trainer.train_step()
    old = [arguments[1] for arguments, _ in losses]
    assert len(old) == 6 and not same(old[0], old[1])
    assert same(old[0], old[2]) and same(old[0], old[4]) and same(old[1], old[3])


@pytest.mark.parametrize(("groups", "updates"), [(1, 1), (3, 3), (4, 4)])
def test_minibatches_without_a_group_make_no_update(examples, sampled, groups, updates):
    """Zero-variance groups are left out, so fewer may remain than there are minibatches."""
    batch = copy.deepcopy(sampled)
    batch.rewards[groups:] = 1.0
    trainer = make_trainer(examples, minibatches=4, beta=0.0)
    replay(trainer, batch)
    noted = note_gradients(trainer)
    metrics = trainer.train_step()
    assert len(noted) == updates and metrics["groups_trained"] == groups
    assert math.isfinite(metrics["kl"])


def test_a_bad_minibatch_is_left_out(examples, sampled):
    """The loss of the second of four is not finite, so of two passes it misses both; the second is
    not tried.
    """
    trainer = make_trainer(examples, minibatches=4, num_iterations=2)
    batch = copy.deepcopy(sampled)
    batch.rewards[1, 0] = 1e38
    replay(trainer, batch, sampled)
    noted = note_gradients(trainer)
    assert trainer.train_step()["skipped"] == 2 and len(noted) == 6
    assert trainer.train_step()["skipped"] == 0 and len(noted) == 14


def test_a_minibatch_without_a_token_makes_no_update(examples, sampled):
    """All completions of the last of four groups are cut; if all are, one update is made."""
    batch = copy.deepcopy(sampled)
    batch.finished[:], batch.finished[3] = True, False
    for finished, updates in ((batch.finished, 3), (torch.zeros_like(batch.finished), 1)):
        batch.finished = finished
        trainer = make_trainer(examples, minibatches=4, mask_truncated=True)
        replay(trainer, batch)
        noted = note_gradients(trainer)
        metrics = trainer.train_step()
        assert len(noted) == updates and metrics["skipped"] == 0
        assert metrics["ratio"] > 0.5 or updates == 1


# ------------------------------------------------------------------------ truncated completions


def with_other_tokens(batch: Rollout, change: torch.Tensor) -> Rollout:
    """The batch with other words where ``change`` (P, G) says so."""
    batch = copy.deepcopy(batch)
    for p, g in change.nonzero().tolist():
        batch.completion_ids[p][g] = [(token + 3) % 20 + 4 for token in batch.completion_ids[p][g]]
    return batch


@pytest.mark.parametrize("mask_truncated", [True, False])
def test_masked_completions_get_no_gradient(examples, sampled, mask_truncated):
    """The gradient does not depend on their tokens if they are masked, and does if they are not."""
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
    """A higher reward of a truncated completion lowers the advantage of the others."""
    cut = ~sampled.finished
    seen = []
    for bonus in (0.0, 1.0):
        batch = copy.deepcopy(sampled)
        batch.rewards = batch.rewards + bonus * cut
        losses = note_calls(monkeypatch, "policy_loss")
        trainer = make_trainer(examples, mask_truncated=True)
        replay(trainer, batch)
        trainer.train_step()
        advantages = torch.cat([arguments[2] for arguments, _ in losses])[..., 0]
        assert torch.equal(advantages, group_advantages(batch.rewards, kind="centered"))
        weights = [arguments[3] for arguments, _ in losses]
        for part_weights, part in zip(weights, (slice(0, 2), slice(2, 4))):
            assert torch.equal((part_weights > 0).any(-1), sampled.finished[part])
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


# ------------------------------------------------------------------------ the order of questions


def test_each_epoch_is_another_permutation(examples):
    questions = make_trainer(examples).questions
    questions.examples = list(range(40))
    epochs = [questions.draw(40)[0] for _ in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = make_trainer(examples, seed=7).questions
    other.examples = list(range(40))
    assert other.draw(40)[0] != epochs[0] != list(range(40))


def test_sampling_seeds_by_hand():
    result = doctest.testmod(grpo.questions)
    assert result.attempted and not result.failed


def test_a_group_of_a_rollout_is_no_view_of_all(examples):
    """What other processes are sent would be the memory that a view is of."""
    rollout = make_trainer(examples).sample_and_score(3)
    for logprobs in rollout.sampling_logprobs:
        assert logprobs.untyped_storage().nbytes() == logprobs.numel() * logprobs.element_size()


@ANY_SPEED
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8), st.integers(0, 3))
def test_no_question_is_skipped_or_repeated(size, counts, seed):
    """However many are drawn at a time: every epoch has each question once, in the order in which
    a single draw gives them. No two questions share a sampling seed.
    """
    stream, single = (QuestionStream(list(range(size)), seed) for _ in range(2))
    draws = [stream.draw(count) for count in counts]
    drawn = [question for questions, _ in draws for question in questions]
    seeds = [number for _, numbers in draws for number in numbers]
    assert stream.cursor == len(drawn) == sum(counts)
    assert (drawn, seeds) == single.draw(sum(counts))
    assert len(set(seeds)) == len(drawn)
    seeds_of_next_run = QuestionStream(list(range(size)), seed + 1).draw(len(drawn))[1]
    for pair in zip(seeds, seeds_of_next_run):  # the noise of another run differs, too
        assert not torch.equal(*(_uniforms([n], 1, 4, torch.device("cpu")) for n in pair))
    for start in range(0, len(drawn), size):
        epoch = drawn[start : start + size]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(size))


@ANY_SPEED
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8), st.data())
def test_questions_that_teach_nothing_are_asked_less(size, counts, data):
    """Of the questions that a stream passes over, each has a streak; a stream in the state of
    another one goes on as that one does.
    """
    stream = QuestionStream(list(range(size)), 0, ask_again=0.5)
    for count in counts:
        streaks, cursor = dict(stream.streaks), stream.cursor
        other = QuestionStream(list(range(size)), 0, ask_again=0.5)
        other.cursor, other.streaks = cursor, dict(streaks)
        everything = QuestionStream(list(range(size)), 0)
        everything.cursor = cursor
        drawn = stream.draw(count)
        assert drawn == other.draw(count) and len(drawn[0]) == count
        passed = list(everything.draw(stream.cursor - cursor)[0])
        for question in drawn[0]:
            passed.remove(question)  # raises if it is not there
        assert all(streaks.get(question) for question in passed)
        stream.record(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))


def test_how_often_a_question_is_asked():
    """With a half: a question with one zero-variance group in half of the epochs, with two in a
    quarter, with twenty in a sixteenth; one with a useful group in each.
    """
    stream, epochs = QuestionStream(["one", "two", "many", "none"], 3, ask_again=0.5), 4000
    asked = dict.fromkeys(stream.examples, 0)
    while stream.cursor < 4 * epochs:
        stream.streaks = {0: 1, 1: 2, 2: 20}
        asked[stream.draw(1)[0][0]] += 1
    assert abs(asked["one"] / epochs - 1 / 2) < 0.03
    assert abs(asked["two"] / epochs - 1 / 4) < 0.03
    assert abs(asked["many"] / epochs - 1 / 16) < 0.02
    assert abs(asked["none"] - epochs) <= 1


def test_a_streak_ends_with_a_useful_group(examples):
    """Groups have signal only if some, not all, answers have the word "old"."""
    trainer = make_trainer(examples, RareRewards(), ask_again=0.5)
    batches, expected = note_batches(trainer), {}
    for _ in range(6):
        trainer.train_step()
        for example, same_reward in zip(batches[-1].examples, batches[-1].zero_variance()):
            question = examples.index(example)
            expected[question] = expected.get(question, 0) + 1 if same_reward else 0
        assert trainer.questions.streaks == {q: z for q, z in expected.items() if z}
    assert max(expected.values()) > 1 and min(expected.values()) == 0
    assert trainer.questions.cursor > 24  # some were passed over


# --------------------------------------------------------------------------- dynamic sampling


def with_zero_variance(rollout: Rollout, groups: list[int]) -> Rollout:
    """The rollout with equal rewards in some of the groups."""
    changed = copy.deepcopy(rollout)
    changed.reward_terms[groups] = 0.25
    changed.rewards = changed.reward_terms @ WordRewards.weights
    return changed


def note_batches(trainer: Trainer) -> list[Rollout]:
    """A list of the batches that are trained on."""
    noted, advantages = [], trainer.advantages

    def noting(batch):
        noted.append(batch)
        return advantages(batch)

    trainer.advantages = noting
    return noted


def test_dynamic_sampling_with_real_rewards(examples, verifier):
    """Groups whose completions all have the same reward are replaced."""
    rewards = Rewards(verifier, None, {"execution": 1.0, "syntax": 0.1})
    trainer = make_trainer(examples, rewards, dynamic_sampling=3, max_new_tokens=4)
    batches = note_batches(trainer)
    steps = [trainer.train_step() for _ in range(4)]
    for metrics, batch in zip(steps, batches):
        assert (batch.rewards.amax(1) > batch.rewards.amin(1)).all()
        assert 4 <= metrics["groups_sampled"] <= 16 and metrics["skipped"] == 0
        zero_variance = metrics["frac_reward_zero_std"] * metrics["groups_sampled"]
        assert zero_variance == pytest.approx(metrics["groups_sampled"] - len(batch.examples))
        assert metrics["reward"] == pytest.approx(batch.rewards.mean().item())
        tokens = metrics["completion_length"] * batch.rewards.numel()
        trained = metrics["train_seconds"] * metrics["train_tokens_per_second"]
        sampled = metrics["sample_seconds"] * metrics["sample_tokens_per_second"]
        assert trained == pytest.approx(tokens)  # sampled includes the discarded groups
        assert sampled == pytest.approx(tokens * metrics["groups_sampled"] / len(batch.examples))
    assert trainer.questions.cursor == sum(metrics["groups_sampled"] for metrics in steps)
    assert trainer.questions.cursor > 16  # some had to be replaced
    assert any(metrics["reward/execution"] > 0 for metrics in steps)


def test_questions_continue_where_dynamic_sampling_stopped(examples):
    """Every sampled group takes one question; no question is asked twice in an epoch."""
    trainer = make_trainer(examples, RareRewards(), dynamic_sampling=2, prompts_per_step=3)
    steps = [trainer.train_step() for _ in range(3)]
    asked = [example.question for call in trainer.rewards.calls for example in call[0]]
    groups_sampled = sum(metrics["groups_sampled"] for metrics in steps)
    assert len(asked) == trainer.questions.cursor == groups_sampled > 9
    for start in range(0, len(asked), 5):
        epoch = asked[start : start + 5]
        assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_smaller_batch_is_trained_as_if_it_were_the_whole_batch(examples, sampled, loss):
    """Groups 0 and 2 of 4 have zero variance and are replaced by more of these: the step is that of
    groups 1 and 3 alone, bit for bit.
    """
    batch = with_zero_variance(sampled, [0, 2])
    assert batch.zero_variance().tolist() == [True, False, True, False]
    steps = []
    for prompts, rounds, batches in (
        (4, 1, [batch, select_groups(batch, [0, 2])]),
        (2, 0, [select_groups(batch, [1, 3])]),
    ):
        trainer = make_trainer(
            examples, loss_aggregation=loss, prompts_per_step=prompts, dynamic_sampling=rounds
        )
        replay(trainer, *batches)
        steps.append((without_clocks(trainer.train_step()), lora_of(trainer)))
    (metrics, weights), (alone, expected) = steps
    assert (metrics.pop("groups_sampled"), alone.pop("groups_sampled")) == (6, 2)
    assert metrics.pop("frac_reward_zero_std") == pytest.approx(4 / 6)
    assert alone.pop("frac_reward_zero_std") == 0
    assert metrics == alone and same(weights, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_variance_groups_cost_nothing(examples, sampled, loss, monkeypatch):
    """Groups 0 and 2 of 4 have zero variance: neither policy nor reference sees them, and the
    update is that of groups 1 and 3 alone, bit for bit. The metrics of rewards and lengths are
    those of all four.
    """
    batch = with_zero_variance(sampled, [0, 2])
    steps, passes = [], []
    for rollout in (batch, select_groups(batch, [1, 3])):
        trainer = make_trainer(examples, loss_aggregation=loss)
        replay(trainer, rollout)
        passes.append(note_passes(monkeypatch, trainer.model))
        steps.append((trainer.train_step(), lora_of(trainer)))
    (metrics, weights), (alone, expected) = steps
    assert same(weights, expected) and not same(weights, lora_of(make_trainer(examples)))
    assert passes[0][:2] == [(False, 2), (True, 2)] and passes[1] == [(False, 2), (True, 2)]
    for name in ("loss", "kl", "entropy", "grad_norm", "sampling_logp_difference"):
        assert metrics[name] == alone[name]
    assert (metrics["frac_reward_zero_std"], metrics["groups_trained"]) == (0.5, 2)
    assert metrics["reward"] == pytest.approx(batch.rewards.mean().item()) != alone["reward"]
    lengths = [len(ids) for group in batch.completion_ids for ids in group]
    assert metrics["completion_length"] == pytest.approx(sum(lengths) / 12)
    assert metrics["train_seconds"] * metrics["train_tokens_per_second"] == pytest.approx(
        sum(lengths[3:6] + lengths[9:])
    )


def test_without_any_advantage_the_kl_term_is_left(examples, sampled):
    """All four groups have zero variance: the gradient is that of the KL term over all of them."""
    batch = with_zero_variance(sampled, [0, 1, 2, 3])
    gradients = []
    for choice in ("skip", "train"):
        trainer = make_trainer(examples, zero_variance=choice, beta=0.5)
        replay(trainer, batch)
        noted = note_gradients(trainer)
        assert trainer.train_step()["groups_trained"] == 4
        gradients.append(noted[0])
    assert same(*gradients) and any(gradient.any() for gradient in gradients[0].values())


def test_zero_variance_groups_count_in_the_mean(examples, sampled):
    """Groups 0 and 2 of 4 have zero variance and are trained on, with ``--zero-variance train``.
    They have no policy gradient, but the mean is over their tokens, too: the gradient is that of
    groups 1 and 3 alone, times the share of tokens that those two have. ``sequence`` and
    ``constant`` are means over completions: half of the gradient.
    """
    batch = with_zero_variance(sampled, [0, 2])
    tokens = [sum(map(len, group)) for group in batch.completion_ids]
    shares = {"token": (tokens[1] + tokens[3]) / sum(tokens), "sequence": 0.5, "constant": 0.5}
    for loss in LOSSES:
        gradients = []
        for prompts, rollout in ((4, batch), (2, select_groups(batch, [1, 3]))):
            options = {"loss_aggregation": loss, "prompts_per_step": prompts, "beta": 0.0}
            options["zero_variance"] = "train"
            trainer = make_trainer(examples, max_grad_norm=1e9, **options)
            replay(trainer, rollout)
            noted = note_gradients(trainer)
            trainer.train_step()
            gradients.append(torch.cat([part.flatten() for part in noted[0].values()]))
        whole, alone = gradients
        assert (whole - shares[loss] * alone).norm() < 1e-4 * whole.norm() and whole.norm() > 0


def test_a_step_of_zero_variance_groups_changes_nothing(examples, sampled):
    zero_variance = with_zero_variance(sampled, [0, 1, 2, 3])
    trainer = make_trainer(examples, beta=0.0, dynamic_sampling=2)
    replay(trainer, zero_variance, zero_variance, zero_variance)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["groups_sampled"] == 12 and metrics["frac_reward_zero_std"] == 1
    assert metrics["grad_norm"] == 0 and metrics["skipped"] == 0
    assert same(lora_of(trainer), before)
