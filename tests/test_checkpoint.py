"""Files when the disk is full, adapters in PEFT's format, and metrics after a kill."""

import errno
import json
import pickle
import resource
from contextlib import contextmanager

import pytest
import torch
from adapter_kit import logits, make, trained
from safetensors.torch import load_file, save_file

from encoder.checkpoint import load_state, save_state
from grpo.checkpoint import SAFETENSORS_ERRORS, load_adapter, save_adapter
from grpo.evaluation.report import append_metrics, keep_metrics, read_metrics
from grpo.lora import add_lora, lora_parameters
from sqlenv import UserError
from sqlenv.files import write_directory, write_file, write_json

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@contextmanager
def full_disk(size: int = 1000):
    """Within it no file can exceed ``size`` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ----------------------------------------------------------------------------------- files


def write_half(path):
    """A writer whose disk is full after the first half."""
    path.write_text("the first ha")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_file(tmp_path):
    """Into a folder that it creates, and over an existing file."""
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        write_file(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
        assert list(path.parent.iterdir()) == [path]


def test_the_previous_file_stays_until_the_new_file_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    seen = []

    def write(temporary):
        temporary.write_text("after")
        seen.append((temporary.parent, temporary == path, path.read_text()))

    write_file(path, write)
    assert seen == [(tmp_path, False, "before")]  # in the same folder, so that renaming is atomic
    assert path.read_text() == "after"


def test_a_full_disk_leaves_the_previous_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("before")
    with pytest.raises(UserError) as error:
        write_file(path, write_half)
    assert str(path) in str(error.value) and "No space left" in str(error.value)
    assert "previous" in str(error.value)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_at_the_first_write_leaves_no_file(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(UserError, match="state.pt") as error:
        write_file(path, write_half)
    assert "previous" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match="folder"):
        write_file(tmp_path / "folder" / "state.pt", lambda temporary: temporary.touch())


def test_a_bug_in_the_writer_is_not_a_user_error(tmp_path):
    with pytest.raises(KeyError):
        write_file(tmp_path / "file", lambda temporary: {}["no such key"])


def test_json_that_cannot_be_written_leaves_the_previous_file(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_write_json(tmp_path):
    value = {"lang": "vi", "text": "Mỗi ca sĩ", "numbers": [1, 0.5, None]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_write_directory(tmp_path):
    folder = tmp_path / "deep" / "model"
    write_directory(folder, lambda temporary: (temporary / "a.txt").write_text("a"))
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_directory_is_complete_or_absent(tmp_path):
    def write(temporary):
        (temporary / "a.txt").write_text("a")
        write_half(temporary / "b.txt")

    with pytest.raises(UserError, match="model.*No space left"):
        write_directory(tmp_path / "model", write, SAFETENSORS_ERRORS)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(UserError, match="model"):
        write_directory(tmp_path / "model", lambda temporary: (temporary / "new").touch())
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


# ---------------------------------------------------------------------------- training state


def test_state_round_trip(tmp_path):
    path = tmp_path / "checkpoint" / "state.pt"
    state = {
        "step": 3,
        "lora": {"a": torch.randn(2, 3), "b": torch.randn(2).bfloat16()},
        "generator": torch.Generator().manual_seed(1).get_state(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5}]},
        "config": {"lang": "vi", "reward": {"execution": 1.0}},
    }
    save_state(path, state)
    loaded = load_state(path)
    assert loaded["step"] == 3 and loaded["config"] == state["config"]
    for name, tensor in state["lora"].items():
        assert torch.equal(loaded["lora"][name], tensor)
        assert loaded["lora"][name].dtype == tensor.dtype
    assert torch.equal(loaded["generator"], state["generator"])
    assert loaded["optimizer"] == state["optimizer"]


def test_a_missing_state_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="state.pt does not exist"):
        load_state(tmp_path / "state.pt")


def test_a_damaged_state_is_a_user_error(tmp_path):
    """Cut in half, as by an interrupted copy."""
    path = tmp_path / "state.pt"
    save_state(path, {"step": 2, "lora": torch.zeros(500)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="state.pt"):
        load_state(path)


class Trap:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_state_is_not_run(tmp_path):
    torch.save({"step": Trap(tmp_path / "trapped")}, tmp_path / "state.pt")
    with pytest.raises((UserError, pickle.UnpicklingError)):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "trapped").exists()


def test_a_full_disk_while_a_state_is_written(tmp_path):
    """torch raises a RuntimeError."""
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})
    with full_disk(), pytest.raises(UserError, match="state.pt"):
        save_state(path, {"step": 2, "lora": torch.zeros(5000)})
    assert load_state(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_while_an_adapter_is_written(tmp_path):
    """safetensors raises a SafetensorError, which is not an OSError."""
    save_adapter(trained(), tmp_path, "base")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(), pytest.raises(UserError, match="adapter_model.safetensors"):
        save_adapter(trained(), tmp_path, "base")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_while_a_model_directory_is_written(tmp_path):
    def write(temporary):
        save_file({"weight": torch.zeros(5000)}, temporary / "model.safetensors")

    with full_disk(), pytest.raises(UserError, match="model"):
        write_directory(tmp_path / "model", write, SAFETENSORS_ERRORS)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------- adapters


def test_adapter_round_trip(tmp_path):
    model = trained()
    save_adapter(model, tmp_path / "adapter", "base")
    loaded = make()
    assert not torch.allclose(logits(loaded), logits(model), atol=1e-2)
    load_adapter(loaded, tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    for name, tensor in lora_parameters(model).items():
        assert torch.equal(lora_parameters(loaded)[name], tensor)


def test_an_adapter_of_a_bfloat16_model_stays_float32(tmp_path):
    model = add_lora(make().to(torch.bfloat16), rank=3, alpha=5)
    save_adapter(model, tmp_path, "base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_adapter_is_in_pefts_format(tmp_path):
    """Keys have PeftModel's prefix and no adapter name; A is (r, in), B is (out, r), and the scale
    is alpha / r.
    """
    model = trained(rank=3, alpha=5)
    save_adapter(model, tmp_path, "some/base")
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == "some/base"
    assert config["r"] == 3 and config["lora_alpha"] == pytest.approx(5)
    assert config["lora_dropout"] == 0 and config["bias"] == "none"
    assert config["fan_in_fan_out"] is False
    assert sorted(config["target_modules"]) == sorted(LAYERS)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    expected = {
        f"base_model.model.model.layers.{layer}.{block}.{name}.lora_{part}.weight"
        for layer in range(2)
        for block, names in (("self_attn", LAYERS[:4]), ("mlp", LAYERS[4:]))
        for name in names
        for part in "AB"
    }
    assert set(tensors) == expected
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (3, 32)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (48, 3)
    up = model.model.layers[1].mlp.up_proj
    assert torch.equal(tensors[f"{prefix}.lora_A.weight"], up.lora_A)


def test_peft_reads_the_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = trained()
    save_adapter(model, tmp_path, "base")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


def test_an_adapter_of_another_method_is_refused(tmp_path):
    """Such as IA3, which has no rank."""
    save_adapter(trained(), tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    del settings["r"]
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"{tmp_path}.*: not a LoRA adapter.*'r'"):
        load_adapter(make(), tmp_path)


def test_an_adapter_of_some_layers_reads_back(tmp_path):
    model = add_lora(make(), rank=3, alpha=5, targets=["q_proj", "mlp.down_proj"])
    assert len(lora_parameters(model)) == 2 * 4
    with torch.no_grad():
        for tensor in lora_parameters(model).values():
            tensor.add_(0.3)
    save_adapter(model, tmp_path, "base")
    loaded = make()
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_the_files_alone_give_the_merged_weights(tmp_path):
    """W + alpha / r B A, as any reader of the format computes it."""
    model = trained()
    save_adapter(model, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    merged = make()
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            update = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            weights[f"{layer}.weight"] += config["lora_alpha"] / config["r"] * update
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 1},  # the adapter has more layers
        {"num_hidden_layers": 3},  # and fewer
        {"intermediate_size": 64},
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, changes):
    save_adapter(trained(), tmp_path, "some/base")
    with pytest.raises(UserError, match="does not fit.*some/base"):
        load_adapter(make(**changes), tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_a_user_error(tmp_path, name):
    save_adapter(trained(), tmp_path, "base")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        load_adapter(make(), tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_file_is_a_user_error(tmp_path, name):
    """Cut in half, as by an interrupted copy."""
    save_adapter(trained(), tmp_path, "base")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=str(tmp_path)):
        load_adapter(make(), tmp_path)


# --------------------------------------------------------------------------------- metrics


def rows(*steps: int) -> list[dict]:
    return [{"step": step, "reward": step / 8, "kl": 0.1} for step in steps]


def test_metrics_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for row in rows(1, 2, 3):
        append_metrics(path, row)
    assert read_metrics(path) == rows(1, 2, 3)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("half", ['{"step": 3, "rew', "{", '{"step": 3, "reward": 0.375}'])
def test_an_unfinished_last_line_does_not_count(tmp_path, half):
    """Not even if it is valid JSON: without its newline, it may be cut within a number."""
    path = tmp_path / "metrics.jsonl"
    for row in rows(1, 2):
        append_metrics(path, row)
    with path.open("a") as file:
        file.write(half)
    assert read_metrics(path) == rows(1, 2)


def test_keep_metrics_drops_later_steps_and_unfinished_lines(tmp_path):
    """So that a resumed run writes complete lines, one for each step."""
    path = tmp_path / "metrics.jsonl"
    for row in rows(1, 2, 3, 4):
        append_metrics(path, row)
    with path.open("a") as file:
        file.write('{"step": 5')
    keep_metrics(path, 2)
    assert read_metrics(path) == rows(1, 2)
    for row in rows(3, 4):
        append_metrics(path, row)
    assert read_metrics(path) == rows(1, 2, 3, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_keep_metrics_of_all_steps_still_removes_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, *rows(1))
    with path.open("a") as file:
        file.write('{"st')
    keep_metrics(path, 9)
    append_metrics(path, *rows(2))
    assert read_metrics(path) == rows(1, 2)


def test_keep_metrics_without_a_file_is_no_error(tmp_path):
    keep_metrics(tmp_path / "metrics.jsonl", 0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
