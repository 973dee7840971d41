"""The supervised warm start: its batches, its learning rate, and that it resumes exactly."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_kit import TOKENIZER, make_policy

from data.generate import build
from grpo import warmup
from grpo.logprobs import completion_logprobs
from grpo.lora import merge_lora
from grpo.models import load_policy
from grpo.warmup import Answers, lr_factor, shuffled_schema, supervised_loss, swap_literals
from sqlenv import LANGUAGES, load_dataset, load_schema


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The embedded dataset with 30 questions a language to imitate."""
    root, built = tmp_path_factory.mktemp("root"), build()
    questions = Path("dataset/multispider/with_English_value")
    (root / questions).mkdir(parents=True)
    for lang in LANGUAGES:
        entries = json.loads((built / questions / f"warmup_{lang}.json").read_text("utf-8"))[:30]
        (root / questions / f"warmup_{lang}.json").write_text(json.dumps(entries), "utf-8")
    (root / "dataset/spider").symlink_to(built / "dataset/spider")
    return root


def run(root: Path, output: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights after a warm-up of a tiny model."""
    sizes = {"hidden": 128, "layers": 1, "vocab": 400, "rows": 2, "per-row": 3, "steps": 6}
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    assert warmup.main(["--data", str(root), "--output", str(output), *words, *options]) == 0
    return load_file(output / "model.safetensors")


def test_swap_literals_changes_question_and_sql_alike():
    """Only whole text literals that stand once in the question; numbers and LIKE patterns stay."""
    question, sql = swap_literals(
        "Books by Ann Lee after 1990?",
        "SELECT t FROM b WHERE a = 'Ann Lee' AND y > 1990 AND t LIKE '%Ann%'",
        ["Bo Ito"],
        random.Random(0),
    )
    assert question == "Books by Bo Ito after 1990?"
    assert sql == "SELECT t FROM b WHERE a = 'Bo Ito' AND y > 1990 AND t LIKE '%Ann%'"
    twice = "a or a?", "SELECT x FROM t WHERE y = 'a'"
    assert swap_literals(*twice, ["b"], random.Random(0)) == twice


def test_a_shuffled_schema_names_the_same_tables_and_columns():
    example = load_dataset("data", "en", "warmup")[0]
    texts = {shuffled_schema(example, random.Random(seed)) for seed in range(4)}
    assert len(texts) > 1
    for table in load_schema(example.db_path).tables:
        for text in texts:
            assert table.name in text and all(column.name in text for column in table.columns)


def test_lr_factor_by_hand():
    """40 steps: rises over 2, is 1 up to step 20, then falls by 1/20 a step."""
    assert [lr_factor(step, 40) for step in (0, 1, 2, 20, 30, 39)] == [0.5, 1, 1, 1, 0.5, 0.05]


def test_supervised_loss_by_hand():
    """Two question tokens (-1, -3) and two SQL tokens (-2, -4): 3 + 0.5 * 2 = 4. The fifth place
    of the tensor is beyond the completion.
    """
    logprobs = torch.tensor([[[-1.0, -3.0, -2.0, -4.0, -9.0]]])
    loss = supervised_loss(logprobs, [[[5, 6, 7, 8]]], torch.tensor([[2]]), 0.5)
    assert loss.item() == pytest.approx(4)


def test_a_stopped_warm_up_goes_on_to_the_same_weights(root, tmp_path, monkeypatch):
    """Six steps at once, and six steps broken off in the fifth after a checkpoint at the fourth."""
    whole = run(root, tmp_path / "whole")
    monkeypatch.setattr(warmup, "SAVE_EVERY", 4)
    real, calls = warmup.supervised_loss, []

    def fails_in_the_fifth(*arguments):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(warmup, "supervised_loss", fails_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "broken")
    assert (tmp_path / "broken.checkpoint.pt").is_file() and not (tmp_path / "broken").exists()
    resumed = run(root, tmp_path / "broken")
    assert len(calls) == 7  # four, the one that failed, and two more
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "broken"}


def test_stop_ends_early_on_the_same_path(root, tmp_path, monkeypatch):
    """--stop 4 of 6 is the state that six steps pass through after the fourth."""
    stopped = run(root, tmp_path / "stopped", "--stop", "4")
    monkeypatch.setattr(warmup, "SAVE_EVERY", 4)
    seen = {}

    def keep(path, state):
        seen.update({name: tensor.clone() for name, tensor in state["parts"][0].items()})

    monkeypatch.setattr(warmup, "save_state", keep)
    run(root, tmp_path / "whole")
    assert seen
    for name, tensor in stopped.items():
        assert torch.equal(tensor, seen[name].to(torch.bfloat16)), name


def test_a_checkpoint_of_other_settings_is_refused(root, tmp_path, capsys):
    torch.save({"settings": {"steps": 1}}, tmp_path / "new.checkpoint.pt")
    output = str(tmp_path / "new")
    arguments = ["--data", str(root), "--output", output, "--rows", "2", "--hidden", "128"]
    assert warmup.main([*arguments, "--layers", "1", "--vocab", "400"]) == 2
    assert "new.checkpoint.pt is from a run with other settings" in capsys.readouterr().err


CHAT = "{% for m in messages %}{{ m.role }} ? {{ m.content }} </s> {% endfor %}"
CHAT += "{% if add_generation_prompt %}singer ?{% endif %}"


@pytest.mark.parametrize("template", ["", CHAT])
@pytest.mark.parametrize("rank", ["0", "4"])
def test_a_model_that_exists_learns_to_answer(root, tmp_path, rank, template):
    """As train.py asks it, with a chat template and without: gold, and the token that ends an
    answer, become likelier. The base is left as it is.
    """
    base = make_policy()
    merge_lora(base.model).save_pretrained(tmp_path / "base")
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template or None
    tokenizer.save_pretrained(tmp_path / "base")
    words = [
        "--model",
        str(tmp_path / "base"),
        "--data",
        str(root),
        "--output",
        str(tmp_path / "new"),
    ]
    words += ["--lora-rank", rank, "--lr", "0.01", "--steps", "8", "--lang", "en", "--rows", "4"]
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert warmup.main(words) == 0
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    losses = []
    for folder in ("base", "new"):
        policy = load_policy(str(tmp_path / folder))
        batches = Answers(load_dataset(str(root), "en", "warmup"), policy, 8, 1)
        prompts, groups, asked = batches[0]
        assert all(group[0][-1] == 1 and len(group) == 1 for group in groups)
        assert len(prompts) == 8
        losses.append(
            supervised_loss(completion_logprobs(policy.model, prompts, groups), groups, asked, 0.2)
        )
    assert losses[1] < 0.8 * losses[0]
