"""The contrastive encoder: questions in any language and SQL in one vector space.

A bi-encoder: one transformer (any Hugging Face encoder; the paper's is FacebookAI/xlm-roberta-base)
reads a question or a SQL query, its token states are averaged, projected and L2-normalised, and
the cosine of two such vectors says how well the SQL fits the question. Both kinds of text share
the weights; a prefix says which kind is read, as in e5 (arXiv 2402.05672). Sharing halves the
size and lets words that stand in both, such as names and numbers, mean the same from the start.

Paper: "Bridging the Semantic Gap: Contrastive Rewards for Multilingual Text-to-SQL",
arXiv 2510.13827.
"""

import copy
import inspect
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
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


def has_fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return device == "cpu" and any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


class ContrastiveEncoder(nn.Module):
    """Embeds questions and SQL; weights float32, in eval mode unless `train()` is called.

    Trained on one way of writing: give it SQL as `encoder.text.sql_text` returns it (with the
    schema if `with_schema`), so that case, spacing and aliases do not count.

    Args:
        backbone: Hugging Face encoder with hidden size H.
        tokenizer: its tokenizer, with a padding token.
        dim: D, the size of a fresh projection; None leaves the pooled state as it is (D = H).
    """

    def __init__(
        self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dim: int | None
    ):
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.max_tokens = min(MAX_TOKENS, tokenizer.model_max_length)
        self.projection = None
        if dim is not None:
            # Orthonormal rows keep the angles of the pooled states about as they were.
            self.projection = nn.Linear(backbone.config.hidden_size, dim, bias=False)
            nn.init.orthogonal_(self.projection.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start
        self.calibrations: dict[str, Calibration] = {}  # by target of the reward
        self.with_schema = False  # whether it was trained on SQL with its tables beside it
        self.eval()

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss, a scalar; used in training only."""
        return self.log_scale.exp()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask, int64[B, T] -> L2-normalised embeddings, float32[B, D]."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        states = states.last_hidden_state  # (B, T, H)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (B, T, 1)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)  # (B, H): padding does not count
        if self.projection is not None:
            pooled = self.projection(pooled)  # (B, D)
        return F.normalize(pooled, dim=-1)

    def encode(self, texts: list[str], kind: str, chunk: int = 32) -> Tensor:
        """Texts -> embeddings, float32[N, D] on the encoder's device, with gradient.

        Runs `chunk` texts of similar length at a time, so that little is spent on padding; the
        order of the result is that of `texts`. Texts are cut at 256 tokens.

        Raises:
            ValueError: `kind` is neither "query" nor "sql".
        """
        if kind not in PREFIXES:
            raise ValueError(f"kind is {kind!r}, not 'query' or 'sql'")
        device = self.log_scale.device
        if not texts:
            return torch.zeros(0, self.dim, device=device)
        ids = self.tokenizer(
            [PREFIXES[kind] + text for text in texts], truncation=True, max_length=self.max_tokens
        )["input_ids"]
        order = sorted(range(len(texts)), key=lambda n: len(ids[n]))
        parts = []
        for start in range(0, len(order), chunk):
            rows = [ids[n] for n in order[start : start + chunk]]
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(device)
            parts.append(self(batch["input_ids"], batch["attention_mask"]))  # (chunk, D)
        back = torch.tensor(order, device=device).argsort()  # (N,)
        return torch.cat(parts)[back]  # (N, D)

    def fits(self, texts: list[str]) -> list[bool]:
        """Whether each SQL text is short enough to be read to its end."""
        if not texts:
            return []
        prefixed = [PREFIXES["sql"] + text for text in texts]
        return [
            len(ids) <= self.max_tokens
            for ids in self.tokenizer(prefixed, verbose=False)["input_ids"]
        ]

    @property
    def calibration(self) -> Calibration | None:
        """For SQL against its question."""
        return self.calibrations.get("question")

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        if self.projection is None:
            return self.backbone.config.hidden_size
        return self.projection.out_features

    @torch.no_grad()
    def embed(self, texts: list[str], kind: str) -> Tensor:
        """`encode` for use rather than training: no gradient, no dropout, no autocast."""
        training = self.training
        self.eval()
        with torch.autocast(self.log_scale.device.type, enabled=False):
            embeddings = self.encode(texts, kind, chunk=64)  # (N, D)
        self.train(training)
        return embeddings

    def similarity(self, questions: list[str], sqls: list[str]) -> Tensor:
        """Cosine of question n with SQL n, float32[N] on the CPU, in [-1, 1].

        A text that repeats (a question does, once per completion of its group) is embedded once.

        Raises:
            ValueError: the lists differ in length.
        """
        if len(questions) != len(sqls):
            raise ValueError(f"{len(questions)} questions but {len(sqls)} SQL texts")
        left = self._embed_unique(questions, "query")  # (N, D)
        right = self._embed_unique(sqls, "sql")  # (N, D)
        return (left * right).sum(dim=-1).clamp(-1.0, 1.0).cpu()

    def _embed_unique(self, texts: list[str], kind: str) -> Tensor:
        row = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        return self.embed(list(row), kind)[[row[text] for text in texts]]  # (N, D)

    @classmethod
    def load(cls, path: str | os.PathLike, dim: int | None = None) -> "ContrastiveEncoder":
        """Loads an encoder saved by `save`, or any Hugging Face encoder, onto the CPU.

        A plain Hugging Face encoder has no projection and no calibration: its embedding is the
        pooled state itself, as sentence encoders such as e5 mean it. `dim` gives it a fresh
        projection instead, to be trained; an encoder that has one keeps its own.

        Args:
            path: a directory, or the name of a model on the Hugging Face Hub.
            dim: size of a fresh projection, or None.
        Raises:
            UserError: no such directory or model, no tokenizer in it, or files that are damaged.
        """
        folder = _local_folder(path)
        if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
            raise UserError(f"{path} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
        try:
            backbone = _load_backbone(folder)
            encoder = cls(backbone, AutoTokenizer.from_pretrained(folder), dim)
            if (folder / "contrastive.json").exists():
                encoder._load_extra(folder)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{path} cannot be loaded as an encoder: {reason}") from error
        return encoder

    def _load_extra(self, folder: Path) -> None:
        """Reads what `save` wrote beside the Hugging Face files."""
        settings = json.loads((folder / "contrastive.json").read_text())
        if "calibrations" not in settings:
            raise ValueError("contrastive.json has no calibrations; train it again")
        self.calibrations = {
            target: Calibration(**numbers) for target, numbers in settings["calibrations"].items()
        }
        self.with_schema = settings["with_schema"]
        state = {
            name: tensor.float()
            for name, tensor in load_file(folder / "contrastive.safetensors").items()
        }
        if "projection.weight" in state:
            size, hidden = state["projection.weight"].shape
            self.projection = nn.Linear(hidden, size, bias=False)
            self.projection.load_state_dict({"weight": state["projection.weight"]})
        self.log_scale.data.copy_(state["log_scale"])

    def save(self, path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> None:
        """Writes a directory that `load` and, but for the projection, `AutoModel` can read.

        It is written under a temporary name and renamed, so `path` is complete or absent.

        Args:
            path: a new or an empty directory.
            dtype: of the stored weights; float16 halves the size and changes cosines by < 0.001.
        Raises:
            UserError: `path` is a directory with something in it, or a file, or cannot be written.
        """
        path = Path(path)
        require_new(path)

        def write(folder: Path) -> None:
            copy.deepcopy(self.backbone).to(dtype).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            state = {"log_scale": self.log_scale.data}
            if self.projection is not None:
                state["projection.weight"] = self.projection.weight.data.to(dtype)
            save_file(state, folder / "contrastive.safetensors")
            calibrations = {target: asdict(one) for target, one in self.calibrations.items()}
            settings = {"calibrations": calibrations, "with_schema": self.with_schema}
            write_json(folder / "contrastive.json", settings)

        write_directory(path, write, (*WRITE_ERRORS, SafetensorError))


def require_new(path: Path) -> None:
    """Raises UserError if `path` is anything but absent or an empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists: choose another place or remove it first")


def _local_folder(path: str | os.PathLike) -> Path:
    """The directory itself, or a copy of the model of that name on the Hugging Face Hub."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(str(path), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is neither a directory nor a model that can be reached on the Hugging Face Hub"
        ) from error


def _load_backbone(folder: Path) -> PreTrainedModel:
    """The encoder in float32, without BERT's pooler: mean pooling does not use it."""
    model_class = MODEL_MAPPING[type(AutoConfig.from_pretrained(folder))]
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        return model_class.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return model_class.from_pretrained(folder, dtype=torch.float32)
