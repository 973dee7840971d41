"""Loss and gradient equal those of TRL's GRPOTrainer (version 1.16 when this was last run) on the
same log-probs and settings. Skipped where trl is not installed.
"""

import pytest
import torch

from grpo.loss import policy_loss, token_weights

trl = pytest.importorskip("trl", reason="needs trl (pip install trl)")
P, G, T, LIMIT = 3, 4, 6, 8


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    """A real GRPOTrainer on a tiny model; the test replaces its log-probs."""
    from datasets import Dataset
    from test_packing import make
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=P * G,
        num_generations=G,
        max_completion_length=LIMIT,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    return trl.GRPOTrainer(
        model=make(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * P}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>"
        ),
    )


# Ours: loss aggregation, importance sampling, KL, epsilons; theirs: the trainer's attributes.
SETTINGS = {
    "grpo": (("sequence", "token", "k3", 0.2, 0.2), {"loss_type": "grpo"}),
    "dapo": (("token", "token", "k3", 0.2, 0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (("constant", "token", "k3", 0.2, 0.2), {"loss_type": "dr_grpo"}),
    "gspo": (
        ("sequence", "sequence", "k3", 0.2, 0.2),
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    # TRL's cap for CISPO is epsilon_high itself, ours 1 + epsilon_high as in the paper
    "cispo": (("token", "cispo", "k3", 0.2, 0.5), {"loss_type": "cispo", "epsilon_high": 1.5}),
    "k3iw": (("token", "token", "k3iw", 0.2, 0.2), {"loss_type": "dapo", "unbiased_kl": True}),
}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_equal_those_of_trl(trl_trainer, monkeypatch, name, beta):
    (aggregation, importance_sampling, kl, low, high), theirs = SETTINGS[name]
    generator = torch.Generator().manual_seed(0)
    new, old, reference = (-2 * torch.rand(P, G, T, generator=generator) for _ in range(3))
    advantages = torch.randn(P, G, generator=generator)
    lengths = torch.randint(1, T + 1, (P, G), generator=generator)
    mask = torch.arange(T) < lengths[..., None]

    ours = new.clone().requires_grad_()
    weights = token_weights(mask, aggregation=aggregation, max_new_tokens=LIMIT)
    loss, _ = policy_loss(
        ours, old, advantages, weights, reference,
        beta=beta, kl=kl, importance_sampling=importance_sampling,
        epsilon_low=low, epsilon_high=high,
    )  # fmt: skip
    loss.backward()

    for attribute, value in {
        "beta": beta,
        "importance_sampling_level": "token",
        "epsilon_low": low,
        "epsilon_high": high,
        **{key: value for key, value in theirs.items() if key != "unbiased_kl"},
    }.items():
        monkeypatch.setattr(trl_trainer, attribute, value)
    monkeypatch.setattr(trl_trainer.args, "use_bias_correction_kl", "unbiased_kl" in theirs)
    leaf = new.clone().requires_grad_()
    given = leaf.view(P * G, T)
    monkeypatch.setattr(
        trl_trainer,
        "_get_per_token_logps_and_entropies",
        lambda *_, **__: (given, torch.zeros(P * G, T), None),
    )
    trl_trainer.model.eval()
    tokens = torch.ones(P * G, T, dtype=torch.long)
    expected = trl_trainer._compute_loss(
        trl_trainer.model,
        {
            "prompt_ids": tokens[:, :1],
            "prompt_mask": tokens[:, :1],
            "completion_ids": tokens,
            "completion_mask": mask.view(P * G, T).long(),
            "advantages": advantages.view(-1),
            "old_per_token_logps": old.view(P * G, T),
            "ref_per_token_logps": reference.view(P * G, T),
            "num_items_in_batch": mask.sum(),
        },
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(ours.grad, leaf.grad, rtol=0, atol=1e-5)
    assert leaf.grad.abs().sum() > 0.01
