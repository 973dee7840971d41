"""A chat model that thinks, from training to questions about a database: train.py, evaluate.py,
grpo.merge and grpo.ask with a tiny random model, its own prompt, and real SQLite.
"""

import contextlib
import importlib
import io
import json
import sqlite3
from pathlib import Path

import pytest
import torch
from dataset_kit import make_database
from model_kit import make_model
from model_kit import make_tokenizer as make_byte_tokenizer
from trainer_kit import DATABASES, QUERIES, QUESTIONS, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import evaluate
import train
from grpo import ask, merge
from grpo.evaluation.vote import vote
from grpo.models import Policy, load_policy
from grpo.prompt import DEFAULTS, PromptBuilder, PromptSettings
from grpo.rewards import Rewards
from sqlenv import Example, UserError, extract_sql

ROOT = Path(__file__).resolve().parents[1]
FORMAT = ROOT / "examples" / "my_rewards.py"
TEMPLATE = "{schema} {question} ?\n"
CHAT = (  # opens the reasoning itself, as DeepSeek-R1's
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "<|assistant|>{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>"]


def reasoning_model(folder: Path) -> str:
    """A random model whose tokens are words, whole queries, <think> and </think>."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The databases and questions of trainer_kit as a dataset; dev is train."""
    root = tmp_path_factory.mktemp("root")
    for name, script in DATABASES.items():
        folder = root / "dataset" / "spider" / "database" / name
        folder.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(folder / f"{name}.sqlite")) as connection:
            connection.executescript(script)
    entries = [{"question": q, "db_id": db, "query": sql} for q, db, sql in QUESTIONS]
    files = root / "dataset" / "multispider" / "with_English_value"
    files.mkdir(parents=True)
    for split in ("train", "dev"):
        (files / f"{split}_en.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> dict:
    """A run of two steps, and what its rewards saw: (prompts, texts, terms) of each call."""
    folder, calls = tmp_path_factory.mktemp("runs"), []
    model = reasoning_model(folder / "model")
    for name, text in (("prompt.txt", TEMPLATE), ("system.txt", "write {dialect}")):
        (folder / name).write_text(text)
    words = f"""--data {root} --lang en --model {model} --device cpu --dtype float32 --steps 2
        --prompt {folder / "prompt.txt"} --system-prompt {folder / "system.txt"} --thinking on
        --sample-values 1 --schema-budget 90 --prompts-per-step 5 --group-size 8
        --max-new-tokens 200 --overlong-buffer 50 --lr 1e-3 --output {folder / "run"}
        --reward semantic=0 --reward {FORMAT}:reasoning_format=0.2""".split()
    with pytest.MonkeyPatch.context() as patch:
        score = Rewards.score

        def noting(self, examples, texts, *, prompts, lengths):
            terms, verdicts = score(self, examples, texts, prompts=prompts, lengths=lengths)
            calls.append((prompts, texts, dict(zip(self.names, terms.unbind(-1)))))
            return terms, verdicts

        patch.setattr(Rewards, "score", noting)
        assert train.main(words) == 0
    for name in ("prompt.txt", "system.txt"):
        (folder / name).unlink()
    return {"run": folder / "run", "model": model, "calls": calls, "folder": folder}


def test_a_model_that_thinks_is_trained_on_answers_after_its_reasoning(finished):
    """The prompt is the chat template's and opens the reasoning. A completion has SQL if it closes
    it and a query follows, or starts with a query and does not think; and it has the format if it
    thinks once. Some do, and most do not.
    """
    formats = 0
    assert len(finished["calls"]) == 2
    for prompts, texts, terms in finished["calls"]:
        for p, prompt in enumerate(prompts):
            assert prompt.startswith("<|system|>") and prompt.endswith("<think>")
            for g, text in enumerate(texts[p]):
                after = text.rpartition("</think>")[2] if "</think>" in text else ""
                reopened = "<think>" in after
                has_sql = any(sql[:-1] in after for sql in QUERIES) and not reopened
                reasoned = text.partition("</think>")[0].strip()
                once = text.count("</think>") == 1 and "<think>" not in text
                assert terms["reasoning_format"][p, g] == float(has_sql and once and reasoned != "")
                at_once = "think>" not in text and text.strip().startswith("SELECT")
                assert terms["syntax"][p, g] <= (has_sql or at_once)
                formats += int(terms["reasoning_format"][p, g])
    assert 0 < formats < 40
    rows = [json.loads(row) for row in (finished["run"] / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["completion_length"] > 20 for row in rows)


def test_the_run_keeps_its_prompt(finished, tmp_path):
    """As text in its settings, though the files are gone: measured again, it has the same shares
    as after training, and with another prompt it is another system.
    """
    saved = json.loads((finished["run"] / "config.json").read_text())
    assert saved["prompt"] == TEMPLATE and saved["system_prompt"] == "write {dialect}"
    names = {"thinking": "on", "schema_budget": 90, "sample_values": 1}
    assert saved.items() >= names.items()
    out, run = tmp_path / "out.json", str(finished["run"])
    assert evaluate.main(["--run", run, "--test-suite", "--json", str(out)]) == 0
    summary = json.loads((finished["run"] / "summary.json").read_text())
    assert json.loads(out.read_text())["en"] == summary["after"]["en"]
    arguments = evaluate.parse_arguments(["--run", run, "--thinking", "off"])
    assert evaluate.with_run(arguments).prompts == PromptSettings.of(saved | {"thinking": "off"})


def test_evaluation_by_vote(finished, tmp_path):
    """Shares with intervals; each answer says how many of the samples agree; agreement has all
    questions, once.
    """
    out, saved = tmp_path / "out.json", tmp_path / "p.jsonl"
    words = ["--run", str(finished["run"]), "--vote", "4", "--save-predictions", str(saved)]
    assert evaluate.main([*words, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    share = report["en"]["execution"]
    assert share["n"] == 5 and 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    assert sum(level["valid"]["n"] for level in report["agreement"].values()) == 5
    rows = [json.loads(row) for row in saved.open()]
    assert {row["agreement"] for row in rows} <= {0, 0.25, 0.5, 0.75, 1}
    assert all((row["agreement"] > 0) == row["valid"] for row in rows)
    for more in (["--vote", "4"], ["--sample-values", "1"]):
        for source in (["--predictions", "p"], ["--compare", str(saved), str(out)]):
            with pytest.raises(UserError, match="go with a model, not with predictions"):
                evaluate.parse_arguments([*source, *more])
        evaluate.parse_arguments(["--compare", str(saved), words[1], *more])


def database(root: Path, name: str = "concerts") -> Path:
    return root / "dataset" / "spider" / "database" / name / f"{name}.sqlite"


def test_ask_gives_what_the_evaluation_measured(finished, root, tmp_path, capsys, monkeypatch):
    """The same SQL, or none, for the same question; piped questions are answered one by one."""
    saved, run = tmp_path / "p.jsonl", str(finished["run"])
    assert evaluate.main(["--run", run, "--save-predictions", str(saved)]) == 0
    rows = [json.loads(row) for row in saved.open() if '"concerts"' in row]
    capsys.readouterr()
    shown = []
    for row in rows:
        code = ask.main([run, row["question"], "--db", str(database(root))])
        shown.append(capsys.readouterr().out)
        assert code == (0 if row["valid"] else 1)
        assert (row["predicted"] is None) == shown[-1].startswith("no SQL in the answer: ")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n".join(row["question"] for row in rows)))
    assert ask.main([run, "--db", str(database(root))]) == 0
    assert capsys.readouterr().out == "".join(shown)


def test_ask_by_vote_and_of_any_model(finished, root, capsys):
    words = ["--db", str(database(root)), "--vote", "8", "--max-new-tokens", "60"]
    code = ask.main(["--model", finished["model"], "--thinking", "on", "who is old ?", *words])
    shown = capsys.readouterr().out
    assert (code == 0) == ("of 8 samples return this" in shown) or "no SQL" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "?"], "--db: name a database; the run's data has 2, such as {root}/dataset/"),
        (["{run}", "?", "--db", "{root}"], "{root}: "),
        (["{run}", "?", "--db", "{root}/empty.sqlite"], "empty.sqlite: the database has no table"),
        (["{run}", "?", "--db", "{root}/gone.sqlite"], "gone.sqlite: cannot open this database"),
        (["{run}", "", "--db", "{db}"], "the question '' is empty or not valid UTF-8"),
        (["{run}", "a\udcffb", "--db", "{db}"], "'a\\udcffb' is empty or not valid UTF-8"),
        (["{run}", "old " * 500, "--db", "{db}"], "the model's context; lower --max-new-tokens"),
        (["{root}", "?", "--db", "{db}"], "{root}: no folder of a run, it has no adapter; give a"),
        (["{model}", "?", "--db", "{db}"], "no folder of a run, it has no adapter; give a model"),
        (["--model", "{model}", "?"], "--model needs --db, a SQLite file"),
        (["--model", "{model}", "{run}", "?", "--db", "{db}"], "give either a run or --model"),
        ([], "give a run, or a model by --model"),
        (["{run}", "?", "--db", "{db}", "--prompt", "{root}/no.txt"], "--prompt {root}/no.txt: c"),
        (["{run}", "?", "--db", "{db}", "--vote", "1"], "--vote: must be a whole number from 2 up"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    finished, root, capsys, monkeypatch, words, message
):
    monkeypatch.setattr(ask, "load_policy", None)
    (root / "empty.sqlite").touch()
    names = {"run": finished["run"], "root": root, "model": finished["model"]}
    names["db"] = database(root)
    assert ask.main([word.format(**names) for word in words]) == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error and error.count("\n") == 1


def test_a_piped_question_that_is_too_long_does_not_end_the_session(
    finished, root, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("old " * 500 + "\nwho is old ?\n"))
    assert ask.main([str(finished["run"]), "--db", str(database(root))]) == 0
    shown = capsys.readouterr()
    assert "error: --model" in shown.err and shown.out


def test_options_may_stand_between_the_run_and_the_question():
    words = ["run", "--db", "shop.sqlite", "--vote", "8", "how many ?"]
    for given in (words, [*words[1:5], "run", "how many ?"], ["run", "how many ?", *words[1:5]]):
        arguments = ask.parse_arguments(given)
        assert (arguments.run, arguments.question, arguments.vote) == ("run", "how many ?", 8)
    arguments = ask.parse_arguments(["--model", "M", "how many ?", "--db", "shop.sqlite"])
    assert (arguments.run, arguments.question) == (None, "how many ?")
    with pytest.raises(UserError, match="unrecognized arguments: third"):
        ask.parse_arguments(["run", "how many ?", "third"])


def test_typed_questions_have_a_history(monkeypatch):
    """It is read at the start and written at the end, Ctrl-D's; blank lines are no questions."""
    readline = pytest.importorskip("readline")
    typed = iter(["how many ?", "  ", "who ?"])

    def type_line(prompt: str) -> str:
        assert prompt == "question> "
        line = next(typed, None)
        if line is None:
            raise EOFError
        readline.add_history(line)
        return line

    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    arguments = ask.parse_arguments(["run"])
    readline.clear_history()
    assert list(ask.questions(arguments)) == ["how many ?", "who ?"]
    readline.clear_history()
    typed = iter([])
    assert list(ask.questions(arguments)) == []
    assert readline.get_history_item(1) == "how many ?"


# ------------------------------------------------------------------------------- what it prints


def shown(capsys, verifier, path: Path, texts: list[str], finished: bool = True) -> str:
    sqls = [extract_sql(text) for text in texts]
    answer = ask.Answer(texts, [finished] * len(texts), vote(verifier.sandbox, path, sqls))
    ask.show(answer, 96)
    return capsys.readouterr().out


def test_sql_is_laid_out_and_rows_are_a_table(capsys, verifier, examples):
    assert shown(capsys, verifier, examples[0].db_path, ["select name, age from singer"]) == (
        "SELECT name, age\nFROM singer\n\n"
        "name  age\n----  ---\nAnn   25\nBob   35\nCid   40\n\n3 rows\n"
    )


def test_values_of_every_kind(capsys, verifier, examples):
    """NULL, bytes, a text that would change the terminal, a long one, and one of wide characters:
    two columns each.
    """
    texts = [
        f"SELECT NULL AS n, x'00ff' AS b, '北京' AS c, 'a' || char(27) || '[2J' AS d, '{'x' * 61}'"
    ]
    lines = shown(capsys, verifier, examples[0].db_path, texts).splitlines()
    head, _, row, _, count = lines[-5:]
    assert row == f"NULL  x'00ff'  北京  a\\x1b[2J  {'x' * 59}…" and count == "1 row"
    assert head.startswith("n     b        c     d         'xxx")


def test_marks_that_shape_words_are_shown_and_those_that_turn_them_are_not(capsys):
    """A joiner within a Persian word and an emoji; not an override of the direction."""
    assert ask.cell("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"
    assert ask.cell("a\u202eb") == "a\\u202eb"


def test_the_questions_of_a_run_need_not_be_there(tmp_path):
    """With a file of questions, the data is the database. Neither is read to ask about it."""
    path = make_database(tmp_path / "shop.sqlite", "CREATE TABLE book (title)")
    saved = {"data": str(path), "questions": str(tmp_path / "gone.csv"), "model": "m"}
    for words in (["run"], ["run", "--db", str(path)]):
        assert ask.database(ask.parse_arguments(words), saved).db_path == path


def test_a_database_of_views_can_be_asked(tmp_path):
    path = make_database(tmp_path / "v.sqlite", "CREATE VIEW one AS SELECT 1 AS n")
    assert (
        ask.database(ask.parse_arguments(["--model", "m", "--db", str(path)]), {}).db_path == path
    )


def test_descriptions_belong_to_a_file_whatever_its_path_is_called(tmp_path, monkeypatch):
    folder = tmp_path / "bird" / "dev_databases" / "pets"
    path = make_database(folder / "pets.sqlite", "CREATE TABLE pet (name)")
    (tmp_path / "link.sqlite").symlink_to(path)
    known = Example("?", "en", "pets", "", path, descriptions={"pet.name": "of the pet"})
    monkeypatch.setattr(ask, "questions_of", lambda saved: [known])
    monkeypatch.chdir(folder)
    for other in ("pets.sqlite", "../../dev_databases/pets/pets.sqlite", "../../../link.sqlite"):
        arguments = ask.parse_arguments(["run", "--db", other])
        assert ask.database(arguments, {}).descriptions == known.descriptions


def test_no_more_than_fifty_rows(capsys, verifier, examples):
    many = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 51) SELECT x FROM n"
    )
    text = shown(capsys, verifier, examples[0].db_path, [many])
    assert text.endswith("\n50\n\n51 rows, 50 of them shown\n")


NAMES, COUNT = "SELECT name FROM singer", "SELECT count(*) FROM singer"


@pytest.mark.parametrize(
    ("texts", "last"),
    [
        ([NAMES, COUNT, NAMES, NAMES], "3 of 4 samples return this"),
        ([NAMES, COUNT], "1 of 2 samples return this"),
        ([NAMES, COUNT, "no"], "unsure: only 1 of 3 samples return this"),
        ([f"{NAMES} WHERE age > 99"], "0 rows"),
        (
            ["SELECT nome FROM singer"],
            "no result: this query does not run (error: no such column: nome)",
        ),
        (["DELETE FROM singer"], "no result: this query does not run (denied: "),
        (["SELECT a", "SELECT b"], "no result: none of 2 samples runs (error: no such column: a)"),
        (["I do not\x1b know."], "no SQL in the answer: I do not\\x1b know."),
        ([" "], "no SQL in the answer: it is empty"),
        (["<think>Hm"], "no SQL in the answer: <think>Hm"),
    ],
)
def test_doubts_are_said(capsys, verifier, examples, texts, last):
    assert shown(capsys, verifier, examples[0].db_path, texts).splitlines()[-1].startswith(last)


def test_an_answer_that_is_cut_off_names_the_option(capsys, verifier, examples):
    text = shown(capsys, verifier, examples[0].db_path, ["<think>Hm"], finished=False)
    assert text.splitlines()[-1] == "it was cut off after 96 tokens; raise --max-new-tokens"


# ------------------------------------------------------------------------------ the model's card


def code_of_card(text: str) -> str:
    code = text.partition("```python\n")[2].partition("\n```")[0]
    assert sum(bool(line) for line in code.splitlines()) <= 11
    return code


def asked_by_code(code: str, folder: Path, monkeypatch, capsys) -> str:
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(code, {})
    return capsys.readouterr().out.removesuffix("\n")


def asked_here(policy: Policy, settings, verifier, folder: Path, longest: int) -> str:
    """The answer about an empty database with the card's schema."""
    path = folder / "toy.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(merge.SCHEMA)
    example = Example("How many singers are there?", "en", "toy", "", path)
    prompts = PromptBuilder(policy.tokenizer, settings)
    answer = ask.answer(policy, prompts, verifier.sandbox, example, max_new_tokens=longest)
    return answer.texts[0]


def test_the_card_of_a_run_asks_as_grpo_ask_does(finished, tmp_path, verifier, monkeypatch, capsys):
    """With the run's template, system message and thinking; the merged model keeps them, too."""
    assert merge.main([str(finished["run"]), str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    policy = load_policy(str(tmp_path / "merged"), "cpu", "float32")
    saved = ask.saved_settings(
        ask.parse_arguments(["--model", str(tmp_path / "merged"), "--db", "x"])
    )
    settings = PromptSettings.of(saved)
    assert (settings.prompt, settings.thinking, settings.sample_values) == (TEMPLATE, "on", 1)
    text = (tmp_path / "merged" / "README.md").read_text()
    assert "- thinking: on" in text and "with up to 1 sample values of each column" in text
    ours = asked_here(policy, settings, verifier, tmp_path, 200)
    assert asked_by_code(code_of_card(text), tmp_path, monkeypatch, capsys) == ours


def test_the_card_of_a_plain_model(tmp_path, verifier, monkeypatch, capsys):
    tokenizer = make_byte_tokenizer()
    make_model().save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    policy = load_policy(str(tmp_path / "plain"), "cpu", "float32")
    code = merge.usage(policy, DEFAULTS, 20, "plain")
    assert sum(bool(line) for line in code.splitlines()) <= 10
    ours = asked_here(policy, DEFAULTS, verifier, tmp_path, 20)
    assert asked_by_code(code, tmp_path, monkeypatch, capsys) == ours


# ------------------------------------------------------------------------------- reasoning tokens


def test_special_tokens_that_close_reasoning_stay_in_the_text():
    """Without them, a draft would be the answer. Other special tokens go, as ever."""
    tokenizer = make_byte_tokenizer()
    plain = Policy(None, tokenizer, {1})
    ids = [*tokenizer.encode("SELECT 1"), 1]
    assert plain.decode(ids) == "SELECT 1"
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = [*tokenizer.encode("<think>SELECT 1</think>SELECT 2"), 1]
    assert Policy(None, tokenizer, {1}).decode(ids) == "<think>SELECT 1</think>SELECT 2"


@pytest.mark.parametrize(
    ("prompt", "text", "sql", "value"),
    [
        ("?", "<think>a</think>SELECT 1", "SELECT 1", 1),
        ("?<think>\n", "a</think>\nSELECT 1", "SELECT 1", 1),
        ("?<think>\n", "<think>a</think>SELECT 1", "SELECT 1", 0),  # opened twice
        ("?", "a</think>SELECT 1", "SELECT 1", 0),  # not opened
        ("?", "<think> \n</think>SELECT 1", "SELECT 1", 0),  # no reasoning
        ("?", "<think>a</think>b<think>c</think>SELECT 1", "SELECT 1", 0),
        ("?", "Well. <think>a</think>SELECT 1", "SELECT 1", 0),
        ("?", "<think>a</think>I do not know", None, 0),
        ("?", "<think>a", None, 0),
        ("?", "SELECT 1", "SELECT 1", 0),
    ],
)
def test_the_format_reward_by_hand(prompt, text, sql, value):
    rewards = importlib.import_module("examples.my_rewards")
    assert rewards.reasoning_format([prompt], [text], [sql]) == [value]
    assert rewards.short([prompt] * 3, ["", "x" * 50, "x" * 300]) == [1, 0.75, 0]
