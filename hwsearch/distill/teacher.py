"""The teacher: loaded once, its outputs computed once and kept on disk by content.

A distillation step never runs the teacher. What is kept of each position is the k largest probabilities; the rest
counts as one mass (`losses.py`). The key is a hash of the weights, the tokens and k, so that a changed teacher or text
never meets old outputs.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hwsearch.distill.families import attention_of, head_of
from hwsearch.distill.objective import Objective, objective_of
from hwsearch.errors import TeacherError
from hwsearch.files import read_or_drop, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP_K = 32
BATCH = 32


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that students are cut out of.

    Attributes:
        name: what a person calls it.
        model: in float32, in evaluation mode.
        tokenizer: beside it.
        objective: what it was made for.
        digest: hash of the weights, the configuration and the tokenizer, 16 hex digits.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    digest: str


@dataclass(frozen=True)
class Outputs:
    """What the teacher says of some chunks.

    Attributes:
        indices: the k most likely classes of each answer (next tokens of a language model), [chunks, answers, k].
        probabilities: of them, [chunks, answers, k], float16.
    """

    indices: NDArray[np.integer[Any]]
    probabilities: NDArray[np.float16]

    @classmethod
    def read(cls, path: Path) -> Outputs:
        """What `teacher_outputs` keeps."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return cls(stored["indices"], stored["probabilities"])

    @classmethod
    def join(cls, parts: Sequence[Outputs]) -> Outputs:
        """The outputs on many blocks of chunks as one."""
        return cls(np.concatenate([p.indices for p in parts]), np.concatenate([p.probabilities for p in parts]))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Indices and probabilities of some chunks, [chunks x answers, k], int64 and float32."""
        k = self.indices.shape[-1]
        indices = torch.from_numpy(self.indices[rows].reshape(-1, k).astype(np.int64))
        return indices, torch.from_numpy(self.probabilities[rows].reshape(-1, k).astype(np.float32))


def embedded_teacher() -> Path:
    """The folder of the teacher that comes with hwsearch."""
    return Path(__file__).parent.parent / "embedded_teacher"


def load_teacher(source: str | None) -> Teacher:
    """Load a checkpoint from a folder, or the embedded one.

    Raises:
        TeacherError: no checkpoint there, a broken one, or one of a family that is not supported.
    """
    _quiet()
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    folder = Path(source) if source else embedded_teacher()
    name = folder.resolve().name if source else "embedded-teacher"
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"a teacher is a folder with config.json, safetensors and a tokenizer; {folder} has no config.json"
        )
    if not any(folder.glob("*.safetensors")):
        raise TeacherError(
            f"no safetensors in {folder}; pickled weights are not loaded. Save the model with save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = AutoModelForCausalLM if head_of(config) == "lm" else AutoModelForSequenceClassification
        model = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=attention_of(config),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except TeacherError:
        raise
    except Exception as error:  # Transformers, safetensors and JSON raise a dozen kinds for a broken folder
        raise TeacherError(f"cannot load the checkpoint {folder}: {type(error).__name__}: {error}") from error
    if broken := [name for name, weight in model.state_dict().items() if not bool(torch.isfinite(weight).all())]:
        raise TeacherError(
            f"the checkpoint {folder} has weights that are not finite: {broken[0]} and {len(broken) - 1} more"
        )
    if (ids := len(tokenizer)) > config.vocab_size:
        raise TeacherError(
            f"the checkpoint {folder} has {config.vocab_size} embeddings for a tokenizer of {ids} tokens; "
            "save the two together"
        )
    objective = objective_of(config, tokenizer)
    return Teacher(name, model.eval().requires_grad_(False), tokenizer, objective, _digest(model, tokenizer))


def teacher_outputs(teacher: Teacher, chunks: NDArray[np.int64], cache: Path, device: str = "cpu") -> Outputs:
    """The teacher's outputs on `chunks`, [chunks, sequence + 1], from the cache or computed and cached.

    Args:
        teacher: whose.
        chunks: token ids; the last column holds only labels.
        cache: folder that keeps them.
        device: to compute on; the teacher is back on the CPU afterwards, where students are cut out of it.
    """
    classes = int(teacher.objective.classes(teacher.model.config))
    k = min(TOP_K, classes)
    key = hashlib.sha256(
        f"{teacher.digest} {k} {chunks.shape} ".encode() + np.ascontiguousarray(chunks).tobytes()
    ).hexdigest()[:24]
    path = cache / f"{key}.npz"
    if (stored := read_or_drop(path, Outputs.read)) is not None:
        return stored
    answers = teacher.objective.labels(chunks).shape
    indices = np.empty((*answers, k), np.uint16 if classes <= 2**16 else np.int32)
    probabilities = np.empty((*answers, k), np.float16)
    model: Any = teacher.model
    model.to(device)
    try:
        with torch.inference_mode():
            for start in range(0, len(chunks), BATCH):
                part = slice(start, start + BATCH)
                logits = teacher.objective.logits(model, torch.from_numpy(chunks[part]).to(device))
                top = torch.softmax(logits, -1).topk(k)
                indices[part], probabilities[part] = top.indices.cpu().numpy(), top.values.cpu().numpy()
    finally:
        model.to("cpu")
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, indices=indices, probabilities=probabilities)
    return Outputs(indices, probabilities)


def _digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256(model.config.to_json_string().encode())
    fast = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((fast.to_str() if fast is not None else repr(sorted(tokenizer.get_vocab().items()))).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _quiet() -> None:
    """Transformers prints progress bars and advice to stderr; ours are elsewhere. Nothing is fetched unasked."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
