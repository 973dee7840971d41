"""The contrastive encoder: questions in any language and SQL in one vector space.

A bi-encoder. One transformer (any Hugging Face encoder; the paper uses FacebookAI/xlm-roberta-base)
reads a question or a SQL query. Its token states are mean-pooled, projected and L2-normalised, and
the cosine of two such vectors says how well the SQL fits the question. Questions and SQL share the
weights; a prefix says which of them is read, as in e5 (arXiv 2402.05672). Sharing halves the size,
and words that occur in both, such as names and numbers, start with the same embedding.

Paper: "Bridging the Semantic Gap: Contrastive Rewards for Multilingual Text-to-SQL",
arXiv 2510.13827.
"""

import copy
import inspect
import json
import math
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from encoder.calibration import Calibration
from sqlenv.errors import UserError
from sqlenv.files import WRITE_ERRORS, write_directory, write_json

PREFIXES = {"query": "query: ", "sql": "sql: "}
MAX_TOKENS = 256
MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound: sharper temperatures are unstable
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "vocab.json", "*.model"]
# RuntimeError: weights of another size. ImportError: a tokenizer that needs sentencepiece.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class ContrastiveEncoder(nn.Module):
    """Embeds questions and SQL. Weights are float32, in eval mode unless `train()` is called.

    It is trained on SQL in the form that `encoder.text.sql_text` returns (with the schema if
    `with_schema`), which hides letter case, spacing and aliases. `encode` and `embed` take texts as
    they are.

    Args:
        backbone: Hugging Face encoder with hidden size H.
        tokenizer: its tokenizer, with a padding token.
        dim: D, the size of a new projection; None uses the pooled state itself (D = H).
    Attributes:
        calibrations: `Calibration` by target of the reward; empty before training.
        with_schema: whether it was trained on SQL with the schema of its tables beside it.
    """

    def __init__(
        self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, dim: int | None
    ):
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.max_tokens = min(MAX_TOKENS, tokenizer.model_max_length)
        self.projection = None
        if dim is not None:
            # Orthonormal rows roughly keep the angles between pooled states.
            self.projection = nn.Linear(backbone.config.hidden_size, dim, bias=False)
            nn.init.orthogonal_(self.projection.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's initial value
        self.calibrations: dict[str, Calibration] = {}
        self.with_schema = False
        self.eval()

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss, a scalar; used in training only."""
        return self.log_scale.exp()

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        if self.projection is None:
            return self.backbone.config.hidden_size
        return self.projection.out_features

    @property
    def calibration(self) -> Calibration | None:
        """The calibration for SQL against its question, or None."""
        return self.calibrations.get("question")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask, int64[B, T] -> L2-normalised embeddings, float32[B, D]."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        states = output.last_hidden_state  # (B, T, H)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (B, T, 1)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)  # (B, H): padding does not count
        if self.projection is not None:
            pooled = self.projection(pooled)  # (B, D)
        return F.normalize(pooled.float(), dim=-1)  # bfloat16 under autocast

    def encode(self, texts: list[str], kind: str, *, chunk: int = 32) -> Tensor:
        """N texts -> embeddings, float32[N, D] on the encoder's device, with gradient.

        Texts are cut at `max_tokens` tokens. A forward pass reads `chunk` texts of similar length.

        Args:
            kind: "query" for questions, "sql" for SQL.
        Raises:
            ValueError: `kind` is neither of them.
        """
        if kind not in PREFIXES:
            raise ValueError(f"kind is {kind!r}, not 'query' or 'sql'")
        device = self.log_scale.device
        if not texts:
            return torch.zeros(0, self.dim, device=device)
        prefixed = [PREFIXES[kind] + text for text in texts]
        ids = self.tokenizer(prefixed, truncation=True, max_length=self.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        embeddings = []
        for start in range(0, len(order), chunk):
            rows = [ids[i] for i in order[start : start + chunk]]
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(device)
            embeddings.append(self(batch["input_ids"], batch["attention_mask"]))  # (chunk, D)
        inverse = torch.tensor(order, device=device).argsort()  # (N,)
        return torch.cat(embeddings)[inverse]  # (N, D)

    def fits(self, texts: list[str]) -> list[bool]:
        """Whether each SQL text is read to its end: it has at most `max_tokens` tokens.

        An empty text, which `sql_text` returns for SQL that it does not read, never fits.
        """
        if not texts:
            return []
        prefixed = [PREFIXES["sql"] + text for text in texts]
        ids = self.tokenizer(prefixed, verbose=False)["input_ids"]
        return [text != "" and len(row) <= self.max_tokens for text, row in zip(texts, ids)]

    @torch.no_grad()
    def embed(self, texts: list[str], kind: str) -> Tensor:
        """`encode` for inference: no gradient, no dropout, no autocast."""
        training = self.training
        self.eval()
        with torch.autocast(self.log_scale.device.type, enabled=False):
            embeddings = self.encode(texts, kind, chunk=64)  # (N, D)
        self.train(training)
        return embeddings

    @classmethod
    def load(cls, path: str | os.PathLike, *, dim: int | None = None) -> "ContrastiveEncoder":
        """Loads an encoder saved by `save`, or any Hugging Face encoder, onto the CPU.

        Args:
            path: a directory, or the name of a model on the Hugging Face Hub.
            dim: size of a new, untrained projection for an encoder that has none. None: its
                embedding is the pooled state itself, as in sentence encoders such as e5.
        Raises:
            UserError: no such directory or model, no tokenizer in it, files that are damaged or do
                not fit together, or a library that the tokenizer needs is missing.
        """
        folder = _local_folder(path)
        try:
            encoder = cls(_load_backbone(folder), AutoTokenizer.from_pretrained(folder), dim=dim)
            if (folder / "contrastive.json").exists():
                _load_contrastive(encoder, folder)
        except LOAD_ERRORS as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{path} cannot be loaded as an encoder: {reason}") from error
        return encoder

    def save(self, path: str | os.PathLike, *, dtype: torch.dtype = torch.float32) -> None:
        """Writes a directory for `load`; `AutoModel` can read it, too, without the projection.

        Args:
            path: a new or an empty directory. After a failure it is absent, not incomplete.
            dtype: of the stored weights; float16 halves the size and changes cosines by < 0.001.
        Raises:
            UserError: `path` is a file or a directory that is not empty, or cannot be written.
        """
        require_new(Path(path))
        write = partial(_save_contrastive, self, dtype)
        write_directory(Path(path), write, (*WRITE_ERRORS, SafetensorError))


def require_new(path: Path) -> None:
    """Raises UserError unless `path` is absent or an empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists: choose another place or remove it first")


def _local_folder(path: str | os.PathLike) -> Path:
    """The directory itself, or a local copy of the Hugging Face Hub's model of that name."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # transformers depends on it

        try:
            folder = Path(snapshot_download(str(path), allow_patterns=HUB_FILES))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is neither a directory nor a model that can be reached on the Hugging "
                "Face Hub"
            ) from error
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        raise UserError(f"{path} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
    return folder


def _load_backbone(folder: Path) -> PreTrainedModel:
    """The encoder in float32, without BERT's pooler, which mean pooling does not use."""
    model_class = MODEL_MAPPING[type(AutoConfig.from_pretrained(folder))]
    has_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if has_pooler else {}
    return model_class.from_pretrained(folder, dtype=torch.float32, **options)  # pyright: ignore[reportAttributeAccessIssue]


def _load_contrastive(encoder: ContrastiveEncoder, folder: Path) -> None:
    """Reads what `_save_contrastive` wrote beside the Hugging Face files."""
    settings = json.loads((folder / "contrastive.json").read_text())
    if "calibrations" not in settings:
        raise ValueError("contrastive.json has no calibrations; train it again")
    encoder.calibrations = {
        target: Calibration(**numbers) for target, numbers in settings["calibrations"].items()
    }
    encoder.with_schema = settings["with_schema"]
    tensors = load_file(folder / "contrastive.safetensors")
    state = {name: tensor.float() for name, tensor in tensors.items()}
    if "projection.weight" in state:
        size, hidden = state["projection.weight"].shape
        if hidden != encoder.backbone.config.hidden_size:
            raise ValueError(f"the projection in contrastive.safetensors is of {hidden} numbers")
        encoder.projection = nn.Linear(hidden, size, bias=False)
        encoder.projection.load_state_dict({"weight": state["projection.weight"]})
    encoder.log_scale.data.copy_(state["log_scale"])


def _save_contrastive(encoder: ContrastiveEncoder, dtype: torch.dtype, folder: Path) -> None:
    """Writes the backbone and tokenizer as Hugging Face does, and the rest beside them."""
    copy.deepcopy(encoder.backbone).to(dtype).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    state = {"log_scale": encoder.log_scale.data}
    if encoder.projection is not None:
        state["projection.weight"] = encoder.projection.weight.data.to(dtype)
    save_file(state, folder / "contrastive.safetensors")
    calibrations = {target: asdict(curve) for target, curve in encoder.calibrations.items()}
    settings = {"calibrations": calibrations, "with_schema": encoder.with_schema}
    write_json(folder / "contrastive.json", settings)
