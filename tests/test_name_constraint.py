"""Sampling without invented names: what may follow, by hand and on real queries; samples of a
policy that would write anything; log-probs under the same distribution.
"""

import math
import re

import pytest
import torch
from dataset_kit import make_database
from hypothesis import given
from hypothesis import strategies as st
from trainer_kit import ANY_SPEED, TOKENIZER, close, make_policy, make_trainer, note_gradients

from grpo.advantages import group_advantages
from grpo.config import ASSETS, Config
from grpo.logprobs import completion_logprobs
from grpo.lora import lora_disabled, lora_parameters
from grpo.models import load_policy
from grpo.name_constraint import (
    CANDIDATES,
    ConstrainedRows,
    NameConstraint,
    Place,
    TokenTexts,
)
from grpo.prompt import PromptBuilder, PromptSettings
from grpo.rollout import constrained_rows
from grpo.sampler import sample_groups
from sqlenv import EMBEDDED, Example, UserError, load_dataset

NAMES = NameConstraint(["singer", "Name", "birth date", "École", "नाम", "cafe\u0301"])


def accepts(text: str, ends: bool = True) -> bool:
    place = NAMES.after(Place(), text)
    return place is not None and (not ends or NAMES.may_end(place))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM singer",
        "select NAME, count(*) from Singer group by name having COUNT(*) >= 2 limit 3;",
        "SELECT T1.name FROM singer AS T1 JOIN singer t2 ON T1.name = t2.name",
        "SELECT name FROM singer WHERE name = 'Zork''s made-up place' AND name LIKE '%x%'",
        'SELECT "birth date", [birth date], `Name` FROM singer',
        "SELECT count(*) AS total FROM singer ORDER BY total DESC",
        "WITH best AS (SELECT name FROM singer) SELECT name FROM best",
        "WITH RECURSIVE tree(n) AS (SELECT 1) SELECT name FROM singer, tree",
        "SELECT 1.5e3, 0x1F, -2 FROM singer",
        'SELECT नाम, cafe\u0301, École, "École" FROM SINGER',
        "SELECT CAST(name AS INTEGER) FROM singer",
    ],
)
def test_what_is_accepted(sql):
    assert accepts(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT age FROM singer",
        "SELECT name FROM singers",
        "SELECT names FROM singer",
        "SELECT école FROM singer",
        "SELECT T1.age FROM singer AS T1",
        'SELECT "birthday" FROM singer',
        "SELECT [name FROM singer",  # the quote is open
        "SELECT name FROM singer WHERE name = 'A",
        "SELECT nam",  # a name may begin so, and not end
        "The query is SELECT name",
        "SELECT count(*) AS total FROM singer ORDER BY totals",
    ],
)
def test_what_is_not_accepted(sql):
    assert not accepts(sql)
    assert accepts(sql, ends=False) == (sql[-3:] in ("nam", " 'A"))


@ANY_SPEED
@given(st.data())
def test_where_a_text_is_cut_does_not_matter(data):
    """Any pieces of a query lead to the same place as the whole."""
    words = [*sorted(NAMES.names), "select", "x", "unknown", "as", "t1", "12", "'it''s'", '"name"']
    parts = data.draw(st.lists(st.sampled_from(words + [" ", ",", ".", "(", "="]), max_size=12))
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    place = Place()
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        place = NAMES.after(place, text[start:end]) if place else None
    assert place == NAMES.after(Place(), text)


def test_gold_of_the_embedded_dataset_is_accepted():
    """Every word of 400 gold queries is allowed, and one that is changed is not."""
    prompts = PromptBuilder(TOKENIZER, PromptSettings(constrain_names=True))
    for example in load_dataset(EMBEDDED, "en", "dev")[:400]:
        constraint = prompts.constraint(example)
        place = constraint.after(Place(), example.gold_sql)
        assert place is not None and constraint.may_end(place)
        wrong = re.sub(r"(FROM \w+)", r"\1qqq", example.gold_sql, count=1)
        assert constraint.after(Place(), wrong + " ") is None


def test_views_of_the_prompt_may_be_named(tmp_path):
    path = make_database(
        tmp_path / "v.sqlite", "CREATE TABLE t (a); CREATE VIEW best (town) AS SELECT a FROM t"
    )
    constraint = PromptBuilder(TOKENIZER).constraint(Example("?", "en", "v", "", path))
    assert constraint.after(Place(), "SELECT town FROM best ")
    assert not constraint.after(Place(), "SELECT towns FROM best ")


def test_token_texts_keep_their_space():
    """Llama's own tokenizers drop it from a token that is decoded alone."""
    texts = TokenTexts(load_policy(str(ASSETS / "policy"), "cpu", "float32").tokenizer)
    ids = texts.tokenizer.encode("SELECT name FROM singer", add_special_tokens=False)
    assert "".join(map(texts, ids)) == "SELECT name FROM singer"
    assert texts(texts.tokenizer.eos_token_id) is None


def words_of(sql: str) -> list[str]:
    """The words outside of strings."""
    return re.findall(r"[a-z_]\w*", re.sub(r"'[^']*('|$)", "", sql).lower())


def test_a_policy_that_cannot_read_writes_no_other_names():
    """The shipped policy at temperature 2, where without the constraint it writes made-up names."""
    policy = load_policy(str(ASSETS / "policy"), "cpu", "float32")
    some = load_dataset(EMBEDDED, "en", "dev")[:4]
    invented = {}
    for constrain in (False, True):
        prompts = PromptBuilder(policy.tokenizer, PromptSettings(constrain_names=constrain))
        samples = sample_groups(
            policy.model,
            [prompts(example) for example in some],
            eos_ids=policy.eos_ids,
            group_size=4,
            max_new_tokens=24,
            temperature=2.0,
            seeds=[0, 1, 2, 3],
            constrained=constrained_rows(policy, prompts, some, 4),
        )
        known = [prompts.constraint(e).words for e in some]
        texts = [[policy.decode(ids) for ids in group] for group in samples.completion_ids]
        invented[constrain] = sum(
            word not in names and not re.fullmatch(r"[a-z]\d*", word)
            for names, group, finished in zip(known, texts, samples.finished)
            for sql, ended in zip(group, finished.tolist())
            for word in (words_of(sql) if ended else words_of(sql)[:-1])
            if " as " not in sql.lower().replace(" as t", "")
        )
    assert invented[False] > 10 and invented[True] == 0


class AnyWord:
    """Every third token may follow, and the end of the answer."""

    def after(self, place, text):
        return place if int(text) % 3 == 0 else None

    def may_end(self, place):
        return True


def any_rows(count: int) -> ConstrainedRows:
    return ConstrainedRows([AnyWord()] * count, str, {1, 5, 6})


def test_log_probs_are_those_of_the_distribution_that_was_drawn_from():
    """Temperature 1.5; compared with a softmax over the allowed tokens, written down."""
    policy, prompts = make_policy(), [[0, 7, 8, 9], [0, 10, 11]]
    options = {"eos_ids": {1, 5, 6}, "group_size": 3, "max_new_tokens": 6, "temperature": 1.5}
    samples = sample_groups(policy.model, prompts, seeds=[3, 4], constrained=any_rows(6), **options)
    logprobs, entropy = completion_logprobs(
        policy.model, prompts, samples.completion_ids,
        temperature=1.5, with_entropy=True, allowed=samples.allowed,
    )  # fmt: skip
    for p, group in enumerate(samples.completion_ids):
        for g, ids in enumerate(group):
            assert len(samples.allowed[p][g]) == len(ids)
            logits = policy.model(torch.tensor([prompts[p] + ids])).logits[0]
            for t, (token, allowed) in enumerate(zip(ids, samples.allowed[p][g])):
                assert token in allowed
                assert all(i % 3 == 0 or i in {1, 5, 6} for i in allowed)
                row = logits[len(prompts[p]) + t - 1, allowed].float() / 1.5
                own = row.log_softmax(0)
                expected = own[allowed.index(token)].item()
                assert logprobs[p, g, t].item() == pytest.approx(expected, abs=1e-5)
                assert samples.logprobs[p, g, t].item() == pytest.approx(expected, abs=1e-5)
                spread = -(own.exp() * own).sum().item()
                assert entropy[p, g, t].item() == pytest.approx(spread, abs=1e-5)


def test_if_no_probable_token_fits_others_are_looked_at():
    """Only token 0 may follow, which is the least probable one."""

    class OnlyZero(AnyWord):
        def after(self, place, text):
            return place if text == "0" else None

    rows = ConstrainedRows([OnlyZero()], str, set())
    logits = torch.arange(1000.0)[None]
    masked = rows.mask(logits, [0])
    assert masked.softmax(-1)[0, 0] == 1 and rows.allowed == [[[0]]]
    nothing = ConstrainedRows([OnlyZero()], lambda _: "1", set())
    nothing.mask(logits, [0])
    assert len(nothing.allowed[0][0]) == CANDIDATES


def test_a_step_trains_on_the_distribution_that_was_drawn_from(examples):
    """The sampler and the trainer agree, and the gradient is the formula's with that softmax."""
    trainer = make_trainer(examples, constrain_names=True, max_grad_norm=1e9)
    noted = note_gradients(trainer)
    metrics = trainer.train_step()
    (batch,) = trainer.last_rollouts
    assert metrics["sampling_logp_difference_max"] < 1e-4
    assert all(len(own) > 0 for group in batch.allowed for ids in group for own in ids)
    assert min(len(own) for group in batch.allowed for ids in group for own in ids) < 20
    model = make_policy().model
    advantages, objective = group_advantages(batch.rewards), torch.zeros(())
    groups = [p for p in range(len(batch.texts)) if advantages[p].any()]
    total = sum(len(ids) for p in groups for ids in batch.completion_ids[p])
    for p in groups:
        for g in range(len(batch.completion_ids[p])):
            own = logprobs_of(model, batch, p, g)
            with torch.no_grad(), lora_disabled(model):
                reference = logprobs_of(model, batch, p, g)
            ratio = (own - own.detach()).exp()
            k3 = (reference - own).exp() + own - reference - 1
            terms = ratio * advantages[p, g] - trainer.config.beta * ratio * k3
            objective = objective + terms.sum() / total
    parameters = lora_parameters(model)
    gradients = torch.autograd.grad(-objective, list(parameters.values()))
    for name, gradient in zip(parameters, gradients):
        assert close(noted[0][name], gradient), name
    assert math.isfinite(metrics["entropy"])


def logprobs_of(model, batch, p: int, g: int) -> torch.Tensor:
    prompt, ids = batch.prompt_ids[p], batch.completion_ids[p][g]
    logits = model(torch.tensor([prompt + ids])).logits[0]
    rows = []
    for t, (token, allowed) in enumerate(zip(ids, batch.allowed[p][g])):
        row = logits[len(prompt) + t - 1, allowed].float().log_softmax(0)
        rows.append(row[allowed.index(token)])
    return torch.stack(rows)


def test_gold_completions_are_refused_beside_it():
    with pytest.raises(UserError, match="--gold-completions"):
        Config(constrain_names=True, gold_completions=True).check()


@pytest.mark.parametrize(
    "text", ["1", "keeper", "`", '"keeper"', "T1 ", "selec ", "\ufffd", "explain", "#", "!", "..."]
)
def test_an_answer_begins_as_a_query_does(text):
    constraint = NameConstraint(["keeper", "ö"])
    assert constraint.after(Place(), text) is None and not constraint.may_end(Place())
    for start in ("SELECT", "\n(select keeper", "with k as (values (1))"):
        assert constraint.after(Place(), start) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t ORDER BY a DESC NULLS LAST",
        "SELECT sum(a) OVER (ORDER BY a ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM t",
        "SELECT rank() OVER w FROM t WINDOW w AS (PARTITION BY a) ",
        "SELECT a FROM t ORDER BY a COLLATE NOCASE",
        "SELECT floor(a), power(a, 2), json_extract(a, '$.x'), nth_value(a, 2) FROM t",
    ],
)
def test_words_of_sql_are_allowed(sql):
    constraint = NameConstraint(["t", "a"])
    place = constraint.after(Place(), sql)
    assert place is not None and constraint.may_end(place)


def test_a_part_of_a_character_may_only_stand_where_a_name_has_one():
    """Tokens of bytes decode to U+FFFD. ``größe`` may begin with gr and such a part, and is not
    followed any further; ``keeper`` has no place for one.
    """
    constraint = NameConstraint(["größe", "keeper"])
    assert constraint.after(Place(before="select"), "gr\ufffd").free
    assert constraint.after(Place(), "SELECT keepe\ufffd") is None
    assert constraint.after(Place(), 'SELECT "keepe\ufffd') is None
    assert constraint.after(Place(before="as"), "k\ufffd").free
