"""What a model must be so that it is trained and measured on right numbers. Any other model is
refused, with one line, and before its weights are read where its configuration says enough.
"""

import torch
from torch import nn

from grpo.attention import Groups, hidden_states
from sqlenv.errors import UserError

LAYER_TYPES = ("full_attention", "sliding_attention")


def reason(error: Exception) -> str:
    """An error's first line; its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def decoder_blocks(model) -> nn.ModuleList:
    """The layers that get LoRA and activation checkpointing.

    Raises:
        UserError: the model has none, or none with linear layers, or mixes tokens otherwise than by
            full attention and that of a sliding window.
    """
    blocks, name = getattr(model.get_decoder(), "layers", None), type(model).__name__
    text = model.config.get_text_config()
    others = ["attention in chunks"] * bool(getattr(text, "attention_chunk_size", None))
    others += sorted({*(getattr(text, "layer_types", None) or ())} - set(LAYER_TYPES))
    if others:
        raise UserError(f"{name} cannot be used here: it has {others[0]}; choose another model")
    if blocks is None or not any(isinstance(module, nn.Linear) for module in blocks.modules()):
        raise UserError(
            f"{name} cannot be used here: LoRA needs decoder blocks of linear layers, such as "
            "Llama's; choose another model"
        )
    return blocks


def check_tokenizer(tokenizer, rows: int) -> None:
    """Special tokens that no prompt contains may lie beyond the embeddings, as that for images in
    the tokenizer of Gemma 3.

    Args:
        rows: the number of tokens that the model has embeddings for.

    Raises:
        UserError: a prompt can contain a token without an embedding, or there can be no prompt.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    used = {*tokenizer.get_vocab().values()} - special | {tokenizer.bos_token_id or 0}
    if tokenizer.chat_template:
        message = [{"role": "user", "content": "?"}]
        options = {"add_generation_prompt": True, "return_dict": False, "enable_thinking": False}
        try:
            used.update(tokenizer.apply_chat_template(message, **options))
        except Exception as error:  # a template is a program of the model's authors
            raise UserError(
                f"the chat template does not take a single user message: {reason(error)}"
            ) from error
    if max(used) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(used))
        raise UserError(
            f"the tokenizer is larger than the model: token {token!r} has the id {max(used)}, and "
            f"there are embeddings for only {rows}; use the model's own tokenizer, or resize the "
            "model's embeddings"
        )


def check_loading(model, info: dict) -> None:
    """Refuses a model whose files do not agree with its configuration.

    Args:
        info: what transformers tells about the keys of the files.

    Raises:
        UserError: weights are missing, have another size, or belong to blocks or parts of blocks
            that the configuration lacks.
    """
    if info["mismatched_keys"]:
        name, size, wanted = min(info["mismatched_keys"])
        raise UserError(
            f"{name} has the shape {tuple(size)} in the model's files, and {tuple(wanted)} by its "
            "config.json; use the files of one model"
        )
    blocks = decoder_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    extra = {key for key in info["unexpected_keys"] if key.startswith(f"{path}.")}
    for keys, problem in (
        (info["missing_keys"], "weights are missing in the model's files"),
        (extra, "weights have no place in the model that its config.json describes"),
    ):
        if keys:
            raise UserError(
                f"{len(keys)} {problem}, such as {min(keys)}; use the files of one model"
            )


def check_numbers(model) -> None:
    """Raises UserError if a weight is not finite."""
    for name, tensor in model.named_parameters():
        if tensor.element_size() > 1 and not torch.stack(tensor.aminmax()).isfinite().all():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{name} has values that are not finite in {dtype}: the file is damaged, or needs "
                "--dtype float32"
            )


@torch.no_grad()
def check_logits(model) -> None:
    """Compares the model's own logits for three tokens with those by the head alone.

    Raises:
        UserError: its layers attend otherwise than grpo/attention.py can, or its logits are more
        than a product with the head, so that log-probabilities would be wrong.
    """
    name, ids = type(model).__name__, torch.tensor([1, 2, 3], device=model.device)
    try:
        with torch.device(model.device):
            layout = Groups([3], [])
            hidden_states(model, ids, torch.arange(3), layout)
        output = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        logits = model.get_output_embeddings()(output.hidden_states[-1])
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model that is made otherwise can fail in any way
        raise UserError(
            f"{name} cannot attend to a prompt that completions share ({reason(error)}); choose "
            "another model"
        ) from error
    text = model.config.get_text_config()
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    if slides and getattr(text, "sliding_window", None) and layout.windows == {None}:
        raise UserError(
            f"{name} keeps its sliding window from its attention, so that a group cannot share its "
            "prompt; choose another model"
        )
    if not output.logits.isfinite().all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(
            f"{name}: its logits are not finite in {dtype}; use --dtype float32 or bfloat16"
        )
    if not torch.allclose(logits, output.logits, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{name}: its logits are scaled or capped after the output head, which is not "
            "supported; choose another model"
        )


def fixed_context(config) -> int | None:
    """How many tokens a sequence can have before its first ones are treated otherwise; None: any
    number. Past it, the frequencies of dynamic RoPE and LongRoPE depend on the length of the
    sequence, so that completions cannot share a prompt.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for parameters in (rope, *rope.values()):  # of all layers, or by the kind of layer
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        if kind == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
        elif kind and "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def context_of(config) -> int | None:
    """The largest number of tokens in a prompt and its completion; None: any number."""
    limits = fixed_context(config), getattr(config, "max_position_embeddings", None)
    return min((limit for limit in limits if limit), default=None)


def refuse_longer(model, limit: int) -> None:
    """From now on, a prompt and completion of more than ``limit`` tokens are a UserError."""

    def check(_, arguments, keywords) -> None:
        if "layout" in keywords and (length := int(keywords["position_ids"].max()) + 1) > limit:
            raise UserError(
                f"a prompt and its completion have {length} tokens, but {type(model).__name__} "
                f"computes differently past {limit} (its RoPE depends on the length); "
                "lower --max-new-tokens, leave out databases with large schemas, or choose another "
                "model"
            )

    model.get_decoder().register_forward_pre_hook(check, with_kwargs=True)
