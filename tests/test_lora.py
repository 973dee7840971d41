"""LoRA: its layer by hand, what it wraps, and what a merged copy keeps of a small update."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_kit import make_model
from trainer_kit import ANY_SPEED

import grpo.lora
from grpo.lora import (
    LoRALinear,
    add_lora,
    lora_disabled,
    lora_layers,
    lora_merged,
    lora_parameters,
    merge_lora,
    round_dithered,
    update_kept,
)
from sqlenv import UserError

IDS = torch.tensor([[5, 6, 7, 8, 9]])
HALVES = [torch.bfloat16, torch.float16]


def test_lora_by_hand():
    """Base weight [[1, 2]], A = [[1, 1]], B = [[0.5]], alpha / r = 2: y = x1 + 2 x2 + 2 * 0.5 *
    (x1 + x2).
    """
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False)))
    model.get_decoder = lambda: SimpleNamespace(layers=model[0])
    layer = add_lora(model, rank=1, alpha=2)[0][0]
    with torch.no_grad():
        layer.base.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_A.copy_(torch.tensor([[1.0, 1.0]]))
        layer.lora_B.copy_(torch.tensor([[0.5]]))
    x = torch.tensor([[3.0, 5.0]])
    assert model(x).item() == 13 + 8
    with lora_disabled(model):
        assert model(x).item() == 13
    with lora_merged(model):
        assert model(x).item() == 21
    assert layer.base.weight.tolist() == [[1.0, 2.0]]  # the merged weight is a copy
    model(x).sum().backward()
    assert layer.base.weight.grad is None
    assert layer.lora_B.grad.tolist() == [[2.0 * 8]]  # scale * A x
    assert layer.lora_A.grad.tolist() == [[3.0, 5.0]]  # scale * B^T x


def test_contexts_within_each_other():
    """LoRA off is the base, merged or not, until the outermost one ends; a merge that fails leaves
    nothing merged.
    """
    model = add_lora(make_model())
    base = model(IDS).logits
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B)
    tuned = model(IDS).logits
    with lora_merged(model), lora_disabled(model):
        assert torch.equal(model(IDS).logits, base)
        with lora_disabled(model):
            pass
        assert torch.equal(model(IDS).logits, base)
    assert torch.equal(model(IDS).logits, tuned)
    layers[-1].lora_A = torch.nn.Parameter(torch.zeros(1, 1))
    with pytest.raises(RuntimeError), lora_merged(model):
        pass
    assert all(layer.merged is None for layer in layers)


def test_layers_of_another_kind_are_left_alone():
    """Such as a router that returns a tuple; and one that looks at its layer's weight finds it."""

    class Router(torch.nn.Linear):
        pass

    block = torch.nn.ModuleDict({"q": torch.nn.Linear(2, 3), "gate": Router(2, 3)})
    model = torch.nn.ModuleList([block])
    model.get_decoder = lambda: SimpleNamespace(layers=model[0])
    with pytest.raises(UserError, match="'gate' matches no linear layer; the layers: q"):
        add_lora(model, targets=["gate"])
    add_lora(model, rank=1, alpha=2)
    assert type(block["gate"]) is Router and isinstance(block["q"], LoRALinear)
    assert block["q"].weight is block["q"].base.weight


def test_random_weights_depend_on_the_seed_alone():
    """Not on torch's global generator, which stays as it was."""
    drawn = []
    for seed, before in ((3, 0), (3, 1), (4, 1)):
        model = make_model()
        torch.manual_seed(before)
        state = torch.get_rng_state()
        add_lora(model, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([tensor.flatten() for tensor in lora_parameters(model).values()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_target_is_a_whole_name_or_ends_after_a_dot():
    assert doctest.testmod(grpo.lora).failed == 0


def test_a_target_without_a_layer_is_a_user_error():
    with pytest.raises(UserError, match="LoRA target 'query' matches no.*: down_proj, gate_proj"):
        add_lora(make_model(), targets=["q_proj", "query"])


def test_fresh_lora_is_the_base_and_stays_float32():
    model = make_model(num_hidden_layers=2).to(torch.bfloat16)
    before = model(IDS).logits
    add_lora(model)
    assert torch.equal(model(IDS).logits, before)
    assert {tensor.dtype for tensor in lora_parameters(model).values()} == {torch.float32}
    assert not any("lm_head" in name or "embed" in name for name in lora_parameters(model))
    assert len(lora_parameters(model)) == 2 * 7 * 2  # 2 layers, 7 linear maps, A and B


# ------------------------------------------------------------------------------- merged copies


@pytest.mark.parametrize("dtype, step", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("sign", [1, -1])
def test_dither_by_hand(dtype, step, sign):
    """A quarter of the way from 1 to the next value, 1 + step: of 100,000 copies a quarter goes up
    (standard error 0.14 %), and their mean is where they were. Rounded to the nearest, all go down.
    """
    x = torch.full((100, 1000), sign * (1 + step / 4))
    rounded = round_dithered(x, dtype)
    assert rounded.dtype == dtype and set(rounded.unique().tolist()) == {sign, sign * (1 + step)}
    up = (rounded.float().abs() > 1).float().mean().item()
    assert up == pytest.approx(0.25, abs=0.006)
    assert (x.to(dtype) == sign).all()


@ANY_SPEED
@given(st.lists(st.floats(-6e4, 6e4, width=16), min_size=1), st.sampled_from(HALVES))
def test_values_on_the_grid_stay(values, dtype):
    """Powers of two, between grids of different steps, and 0 among them."""
    x = torch.tensor([*values, 0.0, 1.0, -2.0, 0.5]).to(dtype)
    assert torch.equal(round_dithered(x.float(), dtype), x)


@ANY_SPEED
@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=1), st.sampled_from(HALVES))
def test_every_value_goes_to_a_neighbour(values, dtype):
    """One step of the grid is 2 eps |x| at most; float16 has none finer than 2^-24."""
    x = torch.tensor(values)
    limit = (torch.finfo(dtype).eps * x.abs()).clamp(min=2**-24)
    assert ((round_dithered(x, dtype).float() - x).abs() <= limit).all()
    assert torch.equal(round_dithered(x, torch.float32), x)


def small_update(dtype: torch.dtype, size: float) -> torch.nn.Module:
    """A layer of 256 x 256 weights of about 0.02, and an update of about ``size``."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 256, bias=False)
    torch.nn.init.normal_(linear.weight, std=0.02)
    layer = LoRALinear(linear.to(dtype), rank=4, alpha=4)
    torch.nn.init.normal_(layer.lora_A, std=size**0.5)
    torch.nn.init.normal_(layer.lora_B, std=size**0.5 / 2)
    return torch.nn.Sequential(layer)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [3e-6, 3e-5, 3e-3])
def test_a_merged_copy_has_the_whole_update(dtype, size):
    """A bfloat16 weight of 0.02 has steps of 1.2e-4: rounded to the nearest, an update of 3e-6
    moves hardly any. The layer's outputs move along the update's as far as they should.
    """
    model = small_update(dtype, size)
    layer = model[0]
    assert update_kept(model, dtype) == pytest.approx(1, abs=0.05)
    if size == 3e-6 and dtype == torch.bfloat16:
        nearest = (layer.base.weight.float() + layer.update()).to(dtype).float()
        kept = ((nearest - layer.base.weight.float()) * layer.update()).sum()
        assert kept < 0.5 * layer.update().square().sum()
    wanted = layer.base.weight.float() + layer.update()
    assert (merge_lora(model, dtype)[0].weight.float() - wanted).mean().abs() < 1e-6


def test_merging_is_a_function_of_the_weights():
    """The copy for sampling is the same every time, and is what grpo.merge writes; without an
    update it is the base.
    """
    model = small_update(torch.bfloat16, 3e-5)
    with lora_merged(model):
        first = model[0].merged
    torch.rand(1)  # the global generator has no part in it
    with lora_merged(model):
        assert torch.equal(model[0].merged, first)
    assert torch.equal(merge_lora(model, torch.bfloat16)[0].weight, first)
    fresh = add_lora(make_model().to(torch.bfloat16))
    assert update_kept(fresh, torch.bfloat16) == 1
    with torch.no_grad():
        expected = fresh(IDS).logits
        with lora_merged(fresh):
            assert torch.equal(fresh(IDS).logits, expected)
