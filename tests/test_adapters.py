"""Adapters of PEFT: what is read gives PEFT's logits, what is not plain LoRA is refused, setting by
setting. The expectations are written by hand, and compared with PEFT where it is installed.
"""

import json

import pytest
import torch
from adapter_kit import logits, make, trained
from safetensors.torch import load_file, save_file

from grpo.checkpoint import load_adapter, save_adapter
from grpo.lora import lora_parameters
from sqlenv import UserError

READ = [  # an adapter of these settings is plain LoRA on the base as it is
    {},
    {"lora_dropout": 0.1},
    {"task_type": "CAUSAL_LM"},
    {"revision": "main"},
    {"bias": "none", "use_rslora": False, "modules_to_save": None, "alpha_pattern": {}},
    {"exclude_modules": []},
    {"megatron_core": "megatron.core", "qalora_group_size": 32},
    {"init_lora_weights": None},
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "eva"},
]
REFUSED = [  # these change the base, the update, where it is added, or what else is trained
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa_niter_4"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "mica"},
    {"alora_invocation_tokens": [5, 6]},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_bias": True},
    {"rank_pattern": {"q_proj": 2}},
    {"alpha_pattern": {"q_proj": 2}},
    {"modules_to_save": ["lm_head"]},
    {"layers_to_transform": [1]},
    {"layers_to_transform": 0},
    {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"trainable_token_indices": [3]},
    {"layer_replication": [[0, 2], [1, 2]]},
]
REFUSED_WITHOUT_PEFT = [  # PEFT makes no such adapter from these settings alone
    {"task_type": "SEQ_CLS"},
    {"init_lora_weights": "corda"},
    {"init_lora_weights": "loftq"},
    {"init_lora_weights": "lora_ga"},
    {"init_lora_weights": "a later one"},
    {"fan_in_fan_out": True},
    {"use_qalora": True},
    {"target_parameters": ["mlp.down_proj.weight"]},
    {"arrow_config": {"top_k": 2}},
    {"a_later_setting": True},
    {"a_later_setting": 0},
    {"peft_type": "ADALORA"},
    {"peft_type": None},
    {"r": 0},
    {"r": "4"},
    {"r": True},
    {"lora_alpha": None},
    {"lora_alpha": float("nan")},
    {"target_modules": None},
    {"target_modules": []},
    {"target_modules": [4]},
    {"target_modules": "(q_proj"},
]


def name_of(settings: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items()) or "defaults"


def own_adapter(folder, settings: dict):
    """A model with an adapter, which is saved in ``folder`` with these settings changed."""
    model = trained(rank=4)
    save_adapter(model, folder, "base")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return model


def peft_adapter(folder, **settings):
    """A model with an adapter of PEFT whose weights are not 0, also saved in ``folder``."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 5} | settings)
    model = peft.get_peft_model(make(), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return model


# ------------------------------------------------------------------------- setting by setting


@pytest.mark.parametrize("settings", READ, ids=name_of)
def test_settings_that_leave_lora_plain_are_read(tmp_path, settings):
    model, loaded = own_adapter(tmp_path, settings), make()
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("settings", REFUSED + REFUSED_WITHOUT_PEFT, ids=name_of)
def test_every_other_setting_is_refused(tmp_path, settings):
    """By its name, in one line."""
    own_adapter(tmp_path, settings)
    with pytest.raises(UserError, match=f"^{tmp_path}.*: {next(iter(settings))} = ") as error:
        load_adapter(make(), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", READ, ids=name_of)
def test_what_is_read_gives_the_logits_of_peft(tmp_path, settings):
    peft_adapter(tmp_path, target_modules=["q_proj", "down_proj"], **settings)
    theirs = pytest.importorskip("peft").PeftModel.from_pretrained(make(), tmp_path).eval()
    ours = make()
    assert not torch.allclose(logits(ours), logits(theirs), atol=1e-2)
    load_adapter(ours, tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)


@pytest.mark.parametrize("settings", REFUSED, ids=name_of)
def test_what_peft_computes_otherwise_is_refused(tmp_path, settings):
    peft_adapter(tmp_path, **{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings)
    with pytest.raises(UserError, match=f"{tmp_path}.*: {next(iter(settings))} = "):
        load_adapter(make(), tmp_path)


# ------------------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    "targets, count",
    [(["q_proj", "v_proj"], 4), (r".*layers\.1\..*(up|down)_proj", 2), ("all-linear", 14)],
)
def test_an_adapter_of_peft_is_read(tmp_path, targets, count):
    """Suffixes, a regular expression (for 1 of the 2 layers) and PEFT's list of all layers."""
    theirs, ours = peft_adapter(tmp_path, target_modules=targets), make()
    assert not torch.allclose(logits(ours), logits(theirs), atol=1e-2)
    load_adapter(ours, tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    assert len(lora_parameters(ours)) == 2 * count


def test_an_adapter_of_the_head_is_refused(tmp_path):
    peft_adapter(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=f"{tmp_path}.*lm_head.*down_proj, gate_proj"):
        load_adapter(make(), tmp_path)


def test_an_adapter_of_one_layer_names_that_layer(tmp_path):
    """The suffix q_proj would select it in every layer, in this reader and in PEFT."""
    model, loaded = trained(targets=["layers.1.self_attn.q_proj"]), make()
    save_adapter(model, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


# ------------------------------------------------------------------------- tensors


def change(folder, **tensors) -> None:
    """Writes the adapter's tensors again, with some changed; None: left out."""
    path = folder / "adapter_model.safetensors"
    changed = load_file(path) | tensors
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


LAST = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


@pytest.mark.parametrize(
    "tensors, what",
    [
        ({LAST: None}, "does not fit.*down_proj.lora_B.*made for base"),
        ({"base_model.model.lm_head.weight": torch.zeros(50, 32)}, "does not fit.*lm_head.weight"),
        ({LAST: torch.zeros(32, 5)}, "does not fit.*down_proj.lora_B.*made for base"),
        ({LAST: torch.full((32, 4), float("nan"))}, "down_proj.lora_B.weight.*not finite"),
        ({LAST: torch.full((32, 4), float("inf"))}, "down_proj.lora_B.weight.*not finite"),
    ],
    ids=["one missing", "one more", "another size", "nan", "infinite"],
)
def test_tensors_that_cannot_be_used_are_refused(tmp_path, tensors, what):
    own_adapter(tmp_path, {})
    change(tmp_path, **tensors)
    with pytest.raises(UserError, match=f"^{tmp_path}: .*{what}"):
        load_adapter(make(), tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"LORA"'])
def test_settings_that_are_no_object_are_refused(tmp_path, text):
    own_adapter(tmp_path, {})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path}/adapter_config.json: not the settings"):
        load_adapter(make(), tmp_path)
