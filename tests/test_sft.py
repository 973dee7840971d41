"""Supervised fine-tuning: its batches, its loss, its learning rate, and that it resumes exactly."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dataset_kit import make_database
from safetensors.torch import load_file
from trainer_kit import TOKENIZER, make_policy

from encoder import word_vectors
from grpo import pretraining, sft
from grpo.logprobs import completion_logprobs
from grpo.lora import merge_lora
from grpo.models import load_policy
from grpo.prompt import PromptBuilder, PromptSettings, saved_prompt
from grpo.schedules import trapezoid_schedule
from grpo.sft import SftBatches
from sqlenv import UserError, load_dataset
from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.generate import build


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The embedded dataset with 30 SFT questions for each language."""
    root, built = tmp_path_factory.mktemp("root"), build()
    questions = Path("dataset/multispider/with_English_value")
    (root / questions).mkdir(parents=True)
    for lang in LANGUAGES:
        entries = json.loads((built / questions / f"sft_{lang}.json").read_text("utf-8"))[:30]
        (root / questions / f"sft_{lang}.json").write_text(json.dumps(entries), "utf-8")
    (root / "dataset/spider").symlink_to(built / "dataset/spider")
    return root


@pytest.fixture
def short_preparation(monkeypatch):
    """Of a new model: its tokenizer and its embeddings."""
    monkeypatch.setattr(pretraining, "TOKENIZER_SCHEMAS", 20)
    monkeypatch.setattr(word_vectors, "STEPS", 5)


SIZES = {"hidden": 64, "layers": 1, "heads": 2, "vocab": 1500, "rows": 2, "per-row": 3, "steps": 6}
WORDS = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]


def run(output: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights of a tiny model from scratch after SFT."""
    assert sft.main(["--output", str(output), "--lang", "en,vi", *WORDS, *options]) == 0
    return load_file(output / "model.safetensors")


def test_schedule_by_hand():
    """40 steps: rises over 2, is 1 up to step 20, then falls by 1/20 a step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (factor,) = trapezoid_schedule(optimizer, 40).lr_lambdas
    assert [factor(step) for step in (0, 1, 2, 20, 30, 39)] == [0.5, 1, 1, 1, 0.5, 0.05]


def test_a_resumed_run_ends_with_the_same_weights(short_preparation, tmp_path, monkeypatch):
    """Six steps at once, and six steps stopped in the fifth, after a checkpoint at the fourth."""
    whole = run(tmp_path / "whole")
    words = ["--output", str(tmp_path / "broken"), "--lang", "en,vi", *WORDS, "--save-every", "4"]
    interrupted(words, monkeypatch, step=5)
    assert (tmp_path / "broken.checkpoint.pt").is_file() and not (tmp_path / "broken").exists()
    real, calls = sft.backward, []
    monkeypatch.setattr(sft, "backward", lambda *batch: calls.append(0) or real(*batch))
    resumed = run(tmp_path / "broken")
    assert len(calls) == 2
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "broken"}


def test_the_process_keeps_its_denormal_numbers(tmp_path):
    """1e-40 is such a number; SFT treats them as 0 while it runs."""
    assert sft.main(["--output", str(tmp_path)]) == 2  # the folder exists
    assert (torch.full((64,), 1e-40) * 1).min() > 0


def test_stop_ends_early_on_the_same_path(short_preparation, tmp_path, monkeypatch):
    """--stop 4 of 6 is the state that six steps pass through after the fourth."""
    stopped = run(tmp_path / "stopped", "--stop", "4")
    seen = {}

    def keep(path, state):
        seen.update({name: tensor.clone() for name, tensor in state["parts"][0].items()})

    monkeypatch.setattr(sft, "save_state", keep)
    run(tmp_path / "whole", "--save-every", "4")
    assert seen
    for name, tensor in stopped.items():
        assert torch.equal(tensor, seen[name].to(torch.bfloat16)), name


def test_a_checkpoint_of_other_settings_is_refused(short_preparation, tmp_path, capsys):
    torch.save({"settings": {"steps": 1}}, tmp_path / "new.checkpoint.pt")
    assert sft.main(["--output", str(tmp_path / "new"), *WORDS]) == 2
    assert "new.checkpoint.pt is from a run with other settings" in capsys.readouterr().err


def interrupted(words: list[str], monkeypatch, step: int) -> None:
    """Ctrl-C in a step of SFT, counted from 1."""
    real, calls = sft.backward, []

    def fails(*arguments):
        calls.append(0)
        if len(calls) == step:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "backward", fails)
        assert sft.main(words) == 130


def test_a_checkpoint_with_more_steps_than_stop_is_refused_and_kept(
    short_preparation, tmp_path, monkeypatch, capsys
):
    words = ["--output", str(tmp_path / "new"), "--lang", "en,vi", *WORDS, "--save-every", "4"]
    interrupted(words, monkeypatch, step=5)
    assert sft.main([*words, "--stop", "2"]) == 2
    assert "new.checkpoint.pt has 4 steps, more than --stop" in capsys.readouterr().err
    assert (tmp_path / "new.checkpoint.pt").is_file() and not (tmp_path / "new").exists()


def test_a_checkpoint_of_other_questions_is_refused(root, tmp_path, monkeypatch, capsys):
    merge_lora(make_policy().model, torch.float32).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    data = shutil.copytree(root, tmp_path / "data", symlinks=True)
    words = f"""--model {tmp_path / "base"} --data {data} --output {tmp_path / "new"} --lang en
        --steps 3 --rows 1 --per-row 2 --save-every 1""".split()
    interrupted(words, monkeypatch, step=2)
    (file,) = data.glob("**/sft_en.json")
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    assert sft.main(words) == 2
    assert "new.checkpoint.pt is from a run with other settings or data" in capsys.readouterr().err


CHAT = "{% for m in messages %}{{ m.role }} ? {{ m.content }} </s> {% endfor %}"
CHAT += "{% if add_generation_prompt %}singer ?{% endif %}"


@pytest.mark.parametrize("template", ["", CHAT])
def test_prompts_of_a_row_share_their_beginning_and_nothing_changes(root, template):
    """Log-probabilities of gold after prompts that share the schema are those after whole prompts,
    and so is the loss, in which the question has no part.
    """
    policy = make_policy()
    policy.tokenizer = copy.deepcopy(TOKENIZER)
    policy.tokenizer.chat_template = template or None
    examples = load_dataset(str(root), "en", "sft")
    starts, groups, asked = batch = SftBatches(examples, policy, 3, 4, 0)[5]
    texts = [[start + ids for ids in group] for start, group in zip(starts, groups)]
    sizes = [[len(start) + n for n in row] for start, row in zip(starts, asked.tolist())]
    pairs = [(t, n) for group, row in zip(texts, sizes) for t, n in zip(group, row)]
    known = {tuple(PromptBuilder(policy.tokenizer)(example)) for example in examples}
    assert all(tuple(text[:n]) in known for text, n in pairs)
    assert all(len(start) > 0.5 * n for start, row in zip(starts, sizes) for n in row)
    golds = [[t[n:]] for t, n in pairs]
    whole = completion_logprobs(policy.model, [t[:n] for t, n in pairs], golds)
    loss = -whole.sum() / sum(len(gold[0]) for gold in golds)
    assert sft.backward(policy.model, batch) == pytest.approx(loss.item(), rel=1e-2)


def test_prompts_without_a_common_beginning_are_refused(root, monkeypatch):
    """Questions before the schema, and no token that begins every text."""
    batches = SftBatches(load_dataset(str(root), "en", "sft"), make_policy(), 3, 4, 0)
    monkeypatch.setattr(batches, "prompts", lambda example: [*example.question.encode(), 9])
    with pytest.raises(UserError, match="have to begin alike: put {question} behind {schema}"):
        [batches[step] for step in range(9)]


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_do_not_depend_on_the_rows_per_pass(root, rows, monkeypatch):
    """Three rows at once, one by one, and two and one: the same loss and the same gradients, up to
    bfloat16's rounding.
    """
    policy = make_policy()
    batch = SftBatches(load_dataset(str(root), "en", "sft"), policy, 3, 4, 0)[5]

    def gradients(at_once: int) -> tuple[float, dict]:
        policy.model.zero_grad()
        monkeypatch.setattr(sft, "PASS_TOKENS", at_once * max(map(len, batch[0])))
        loss = sft.backward(policy.model, batch)
        parameters = policy.model.named_parameters()
        return loss, {name: p.grad.clone() for name, p in parameters if p.requires_grad}

    loss, expected = gradients(3)
    other_loss, other_gradients = gradients(rows)
    assert other_loss == pytest.approx(loss, rel=1e-3)
    assert sum(gradient.norm() > 0 for gradient in expected.values()) > 3
    for name, gradient in expected.items():
        assert (other_gradients[name] - gradient).norm() <= 0.01 * gradient.norm(), name


@pytest.mark.parametrize(
    "options, expected",
    [
        ("", (10000, 16, 0.02)),
        ("--model M", (1000, 4, 2e-4)),
        ("--model M --lora-rank 0 --rows 2", (1000, 2, 2e-5)),
    ],
)
def test_a_new_model_has_other_defaults(options, expected):
    arguments = sft.parse_arguments(["--output", "x", *options.split()])
    assert (arguments.steps, arguments.rows, arguments.lr) == expected


def test_processes_make_the_batches_ahead_in_order(root):
    """For a GPU; here there is none, and one process makes them."""
    batches = SftBatches(load_dataset(str(root), "en", "sft"), make_policy(), 3, 4, 0)
    loader = sft.batch_loader(batches, range(3, 6), "cuda")
    assert loader.num_workers >= 1
    for step, (prompts, groups, asked) in enumerate(loader, 3):
        expected = batches[step]
        assert (prompts, groups) == expected[:2] and asked.equal(expected[2])
    assert sft.batch_loader(batches, range(3, 6), "cpu").num_workers == 0


def test_a_prompt_that_cannot_be_packed_is_one_line():
    """Also where other processes make the batches, whose errors are tracebacks."""

    class Batches:
        def __getitem__(self, step):
            raise UserError("the prompts about a database have to begin alike")

    with pytest.raises(UserError, match="^the prompts about a database have to begin alike"):
        sft.batch_loader(Batches(), range(2), "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--split train", "--split: goes with --model: a new model is"),
        ("--lora-rank 8", "--lora-rank: goes with --model"),
        ("--questions pairs.csv", "--questions: goes with --model"),
        ("--sample-values 3", "the prompt's options go with --model"),
        ("--model M --hidden 64", "--hidden: an existing model has its own"),
        ("--model M --vocab 64", "--vocab: an existing model has its own"),
    ],
)
def test_options_of_the_other_kind_of_model_are_refused(options, message, capsys):
    assert sft.main(["--output", "x", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_sft_with_another_prompt(root, tmp_path):
    """A row's prompts are those of the settings, in whole, and the new model keeps them."""
    settings = PromptSettings(prompt="{question} {schema}", sample_values=2)
    examples, policy = load_dataset(str(root), "en", "sft"), make_policy()
    starts, groups, asked = SftBatches(examples, policy, 2, 3, 0, settings)[0]
    known = {tuple(PromptBuilder(TOKENIZER, settings)(example)) for example in examples}
    for start, group, sizes in zip(starts, groups, asked.tolist()):
        assert all((*start, *ids[:size]) in known for ids, size in zip(group, sizes))
    merge_lora(policy.model, torch.float32).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    (tmp_path / "prompt.txt").write_text(settings.prompt)
    words = f"""--model {tmp_path / "base"} --data {root} --output {tmp_path / "new"} --lang en
        --steps 1 --rows 1 --per-row 2 --prompt {tmp_path / "prompt.txt"} --sample-values 2
        --schema-budget 100"""
    assert sft.main(words.split()) == 0
    expected = replace(settings, schema_budget=100)
    assert PromptSettings.of(saved_prompt(str(tmp_path / "new"))) == expected


@pytest.mark.parametrize("template", ["", CHAT])
@pytest.mark.parametrize("rank", ["0", "4"])
def test_an_existing_model_learns_to_answer(root, tmp_path, rank, template):
    """With train.py's prompts, with a chat template and without: gold, and the token that ends an
    answer, become more likely. The base is not changed.
    """
    base = make_policy()
    merge_lora(base.model, torch.float32).save_pretrained(tmp_path / "base")
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
    assert sft.main(words) == 0
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    losses = []
    for folder in ("base", "new"):
        policy = load_policy(str(tmp_path / folder))
        examples = load_dataset(str(root), "en", "sft")
        prompts, groups, asked = SftBatches(examples, policy, 4, 2, 1)[0]
        assert len(prompts) == 4 and all(len(group) == 2 for group in groups)
        assert all(ids[-1] == 1 for group in groups for ids in group)
        for parameter in policy.model.parameters():
            parameter.requires_grad_()
        losses.append(sft.backward(policy.model, (prompts, groups, asked)))
    assert losses[1] < 0.8 * losses[0]


def test_the_default_split(root, tmp_path, capsys):
    """sft, of which the root has 30 English questions; train where there is no sft: of the three
    questions on one SQLite file, two."""
    base, shop = tmp_path / "base", make_database(tmp_path / "shop.sqlite", "CREATE TABLE t (a)")
    merge_lora(make_policy().model, torch.float32).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    rows = ["one?,SELECT 1,train", "two?,SELECT 2,dev", "three?,SELECT 3,train"]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["question,sql,split", *rows]))
    for name, data in ("a", f"{root} --lang en"), ("b", f"{shop} --questions {pairs}"):
        words = f"--model {base} --data {data} --output {tmp_path / name} --steps 1 --rows 1"
        assert sft.main(words.split()) == 0
    counts = [line for line in capsys.readouterr().out.splitlines() if line.endswith("examples")]
    assert counts == ["30 examples", "2 examples"]


def test_a_new_model_takes_no_data(tmp_path, capsys):
    assert sft.main(["--output", str(tmp_path / "new"), "--data", str(tmp_path)]) == 2
    assert "--data: goes with --model" in capsys.readouterr().err
