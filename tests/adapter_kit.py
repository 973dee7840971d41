"""A tiny model, and the same with trained LoRA weights: for tests of adapters."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.lora import add_lora, lora_parameters

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def make(**changes) -> LlamaForCausalLM:
    """A tiny Llama, the same weights every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


def trained(rank: int = 3, alpha: float = 5, targets=()) -> LlamaForCausalLM:
    """The same with LoRA weights that are not 0."""
    model = add_lora(make(), rank=rank, alpha=alpha, targets=targets)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in lora_parameters(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits
