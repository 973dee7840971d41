"""Options: ranges of numbers, prompts, paths that cannot be written, Ctrl-C; each one line."""

import json
import signal
import sys
from dataclasses import fields, replace

import pytest
import torch

import evaluate
from encoder import evaluate as encoder_evaluate
from encoder import train as encoder_train
from encoder.device import check_device, resolve_device
from grpo import ask, merge, sft
from grpo.command_line import GROUPS, parse_config
from grpo.config import ROOT, Config, resumed_config
from grpo.prompt import PromptSettings
from sqlenv import UserError
from sqlenv.errors import exit_code
from sqlenv.options import COUNT, COUNT_OR_ZERO, SEED, OptionParser, Range, check_writable

COMMANDS = {
    "train": lambda words: parse_config("", words),
    "evaluate": evaluate.parse_arguments,
    "grpo.sft": sft.parse_arguments,
    "grpo.ask": ask.parse_arguments,
    "encoder.train": encoder_train.parse_arguments,
    "encoder.evaluate": encoder_evaluate.parse_arguments,
}
NEEDED = {
    "evaluate": ["--model", "m"],
    "grpo.sft": ["--output", "o"],
    "grpo.ask": ["run"],
    "encoder.train": ["--output", "o"],
}


def parser_of(command: str) -> OptionParser:
    """The parser that a command makes."""
    parsers = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(
                OptionParser, name, lambda self, _: parsers.append(self) or next(iter([]))
            )
        COMMANDS[command]([])
    return parsers[0]


def test_help_of_training_has_every_setting_in_a_group():
    """The options of ``Config`` in its order, under titles; with its default, and the weights."""
    parser = parser_of("train")
    groups = {group.title: group._group_actions for group in parser._action_groups}
    titles = ["the run", *GROUPS]
    assert [title for title in groups if title in titles] == titles
    shown = [action.dest for title in GROUPS for action in groups[title]]
    assert shown == [f.name for f in fields(Config)]
    text = parser.format_help()
    assert "(assets/policy)" in text and "(0.0006)" in text and "execution=1" in text
    assert str(ROOT) not in text


NUMBERS = [
    (command, action.option_strings[0])
    for command in COMMANDS
    for action in parser_of(command)._actions
    if isinstance(action.type, Range) or action.type in (int, float)
]


@pytest.mark.parametrize(
    ("numbers", "inside", "outside"),
    [
        (COUNT, [1, 96, 2**31 - 1], [0, -1, 2**31, float("nan")]),
        (COUNT_OR_ZERO, [0, 1], [-1]),
        (SEED, [0, 2**32 - 1], [-1, 2**32, 5000000000]),
        (Range(float, 0), [0, 1e300], [-1e-9, float("inf"), float("nan")]),
        (Range(float, 0, above=True), [1e-9], [0, float("inf"), float("nan")]),
        (Range(float, 0, 1), [0, 0.5, 1], [1.5]),
        (Range(int, 64, multiple_of=64), [64, 320], [0, 63, 65]),
    ],
)
def test_ranges_by_hand(numbers, inside, outside):
    assert [number in numbers for number in inside + outside] == (
        [True] * len(inside) + [False] * len(outside)
    )


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_every_number_has_a_range(command, option):
    """NaN, infinity, no number, and a number that is too large or too small are one line, which
    names the option; the number at each end of the range is taken.
    """
    (numbers,) = (a.type for a in parser_of(command)._actions if option in a.option_strings)
    wrong = ["nan", "inf", "-inf", "x", "", "-1", "-1e-9"]
    wrong += [str(10**30), "1.5"] if numbers.kind is int else []
    for word in wrong:
        with pytest.raises(UserError, match=f"^{option}: must be .*, not {word}") as caught:
            COMMANDS[command]([*NEEDED.get(command, []), f"{option}={word}"])
        assert "\n" not in str(caught.value)
    high = numbers.high or (2**31 - 64 if numbers.kind is int else sys.float_info.max)
    for number in [high] + [numbers.low] * (not numbers.above):
        assert numbers(str(number)) == number


def test_there_are_numbers_in_every_command():
    assert {command for command, _ in NUMBERS} == set(COMMANDS)
    ranged = [f.name for f in fields(Config) if type(f.default) in (int, float)]
    assert len([command for command, _ in NUMBERS if command == "train"]) == len(ranged) + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "1"], "unrecognized arguments: --temprature 1"),
        (["--kl", "k9"], "--kl: invalid choice: 'k9'"),
        (["--lora-alpha", "0"], "--lora-alpha: must be a number above 0, not 0"),
        (["--seed", "5000000000"], "--seed: must be a whole number from 0 to 4294967295, not 5"),
        (["--group-size", "1"], "--group-size: must be a whole number from 2 up, not 1"),
        (["--steps"], "--steps: expected one argument"),
        (["--plan", "0"], "--plan: must be a number above 0, not 0"),
        (["--reward", "execution=nan"], "--reward execution=nan: a weight must be a number"),
        (["--lang", ""], "--lang '': not the tag of a language"),
    ],
)
def test_a_wrong_option_is_one_line(words, message):
    with pytest.raises(UserError) as caught:
        parse_config("", words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["dynamic_sampling", "ask_again"])
def test_groups_with_equal_rewards_are_not_left_out_if_they_teach(other):
    """With per_reward advantages: 1 + 0 and 0 + 1 have the same sum."""
    values = {"dynamic_sampling": 2, "ask_again": 0.5}
    Config(**{other: values[other]}).check()
    option = other.replace("_", "-")
    with pytest.raises(UserError, match=f"--advantage per_reward: not with --{option}, since"):
        Config(advantage="per_reward", **{other: values[other]}).check()


def test_settings_that_are_not_given_as_options_are_checked_too():
    with pytest.raises(UserError, match="--temperature: must be a number from 0.01 up, not nan"):
        Config(temperature=float("nan")).check()


def test_the_end_of_sft_is_not_after_its_schedule():
    with pytest.raises(UserError, match="--stop: must not be above --steps"):
        sft.parse_arguments(["--output", "o", "--steps", "5", "--stop", "6"])


# ------------------------------------------------------------------------------------ prompts


def test_a_prompt_file_becomes_a_setting(tmp_path):
    """Its text does, so that the run keeps it. A resumed run takes the same text from any file, and
    another one is refused in one line.
    """
    for name, text in (("a", "{question}\n"), ("b", "{question}\n"), ("c", "{schema}{question}")):
        (tmp_path / name).write_text(text)
    config, _ = parse_config("", ["--prompt", str(tmp_path / "a"), "--thinking", "on"])
    assert (config.prompt, config.thinking, config.sample_values) == ("{question}\n", "on", 0)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    resume = ["--resume", "--output", str(tmp_path), "--prompt"]
    assert parse_config("", [*resume, str(tmp_path / "b")])[0] == config
    assert resumed_config(tmp_path, {}) == config
    with pytest.raises(UserError) as caught:
        parse_config("", [*resume, str(tmp_path / "c")])
    assert "(prompt: '{question}\\n' -> {schema}{question})" in str(caught.value)


def test_a_model_brings_the_prompt_that_it_was_trained_with(tmp_path):
    """To train.py, evaluate.py and grpo.ask; options win, one by one."""
    own = PromptSettings(prompt="{question}", thinking="on", sample_values=2)
    own.save(tmp_path)
    words = ["--model", str(tmp_path), "--sample-values", "1"]
    for settings in (
        PromptSettings.of(vars(parse_config("", words)[0])),
        evaluate.with_run(evaluate.parse_arguments(words)).prompts,
    ):
        assert settings == PromptSettings(prompt="{question}", thinking="on", sample_values=1)
    arguments = ask.parse_arguments([*words, "--db", "x"])
    assert ask.saved_settings(arguments)["sample_values"] == 2
    replace(own, constrain_names=True).save(tmp_path)
    for more, constrained in ([], True), (["--no-constrain-names"], False):
        arguments = evaluate.parse_arguments([*words, *more])
        assert evaluate.with_run(arguments).prompts.constrain_names == constrained


def test_a_template_with_an_unknown_field_is_refused_by_every_command(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("{schema}\n{query}\n")
    for command in ("train", "evaluate", "grpo.sft", "grpo.ask"):
        for option in ("--prompt", "--system-prompt"):
            with pytest.raises(UserError, match=f"^{path}:2: unknown field {{query}}; there are"):
                COMMANDS[command]([*NEEDED.get(command, []), option, str(path)])


def test_a_model_from_scratch_has_no_other_prompt():
    with pytest.raises(UserError, match="the prompt's options go with --model"):
        sft.parse_arguments(["--output", "o", "--sample-values", "2"])


# ------------------------------------------------------------------------------------ paths


def test_what_can_be_written(tmp_path):
    """A file that is in a folder's place, and a folder that is in a file's, are told apart."""
    (tmp_path / "file").write_text("x")
    check_writable("--json", tmp_path / "file")
    check_writable("--json", tmp_path / "new" / "folder" / "file")
    with pytest.raises(UserError, match=f"^--json {tmp_path}: cannot be written, it is a folder"):
        check_writable("--json", tmp_path)
    for path in ("file/x", "file/x/y"):
        with pytest.raises(UserError, match=f"cannot be written, {tmp_path}/file is not a folder"):
            check_writable("--json", tmp_path / path)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (evaluate.main, ["--model", "m", "--json"]),
        (evaluate.main, ["--predictions", "p", "--save-predictions"]),
        (sft.main, ["--output"]),
        (merge.main, ["run"]),
        (encoder_train.main, ["--output"]),
        (encoder_evaluate.main, ["--json"]),
        (encoder_evaluate.main, ["--plot"]),
    ],
)
def test_an_output_below_a_file_is_refused_at_the_start(main, words, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main([*words, str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert "file is not a folder" in error and len(error.splitlines()) == 1


# ------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize("name", ["quantum", "", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_cannot_be_used(name):
    with pytest.raises(UserError, match=f"^--device {name} cannot be used here: .*") as caught:
        check_device(name)
    assert "\n" not in str(caught.value)


def test_devices_that_can_be_used():
    check_device("cpu")
    check_device(resolve_device("auto"))
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (evaluate.main, ["--model", "m"]),
        (sft.main, ["--output", "new"]),
        (encoder_train.main, ["--output", "new"]),
        (encoder_evaluate.main, []),
    ],
)
def test_a_wrong_device_is_refused_at_the_start(main, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--device", "quantum"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --device quantum cannot be used here")
    assert len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ exit codes


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    assert exit_code(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_of_several_processes_one_speaks(capsys):
    def fail() -> None:
        raise UserError("no")

    assert exit_code(fail) == exit_code(fail, lambda: False) == 2
    assert capsys.readouterr().err == "error: no\n"
