"""A checkpoint on disk, read by Transformers: safetensors alone, and code that lies beside them only if it is trusted.

Weights in the checkpoint's own floats are mapped, not copied: processes share them, and the system takes their room
back when it needs it. In other floats every process has a copy of its own.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from hwsearch.distill.families import attention_of, check_type, family_of, image_of, task_of, tasks_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.job import DType
from hwsearch.errors import TeacherError
from hwsearch.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")
IMAGES = "preprocessor_config.json"
# What a pass gives back besides, or does piece by piece to save room: students and graphs have no place for it.
PLAIN = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
}
NARROW = ("I4", "U4", "I8", "U8", "F4", "F8", "F8_E4M3", "F8_E5M2")  # types of weights that take scales to be read


def embedded_teacher() -> Path:
    """The folder of the teacher that comes with hwsearch."""
    return Path(__file__).parent.parent / "embedded_teacher"


class Checkpoint(NamedTuple):
    """Which checkpoint, and how it is read.

    Attributes:
        folder: with config.json, safetensors and a tokenizer or image processor.
        task: what it is for; empty for what it says itself.
        dtype: of its weights; `int8` leaves them in their own floats here (`Teacher.at`).
        trusted: whether code that lies in it may be run.
    """

    folder: Path
    task: str = ""
    dtype: DType = "float32"
    trusted: bool = False

    @classmethod
    def of(cls, source: str | None, task: str = "", dtype: DType = "float32", trusted: bool = False) -> Checkpoint:
        """The one in a folder, or the embedded teacher."""
        return cls(Path(source) if source else embedded_teacher(), task, dtype, trusted)

    def read(self) -> tuple[PreTrainedModel, Any]:
        """The model, in evaluation mode, and its processor.

        Raises:
            TeacherError: no checkpoint there, a broken one, or one of a family or for a task that is not supported.
        """
        import torch

        _quiet()
        folder = self.folder
        if not (folder / "config.json").is_file():
            raise TeacherError(
                f"a teacher is a folder with config.json, safetensors and a tokenizer; {folder} has no config.json"
            )
        if not any(folder.glob("*.safetensors")):
            raise TeacherError(
                f"no safetensors in {folder}; pickled weights are not loaded. Save the model with save_pretrained"
            )
        try:
            entries = read_json(folder / "config.json")
            check_type(entries.get("model_type"))
            self._check_floats(entries)
            model = self.model()
            processor = self._processor(image_of(model.config.to_dict()) is not None)
            config = model.config
        except TeacherError:
            raise
        except Exception as error:  # Transformers, safetensors and JSON raise a dozen kinds for a broken folder
            reason = shorten(str(error), 200)
            raise TeacherError(
                f"cannot load the checkpoint {folder}: {type(error).__name__}: {reason}{self._about_code()}"
            ) from error
        if broken := [name for name, weight in model.state_dict().items() if not bool(torch.isfinite(weight).all())]:
            raise TeacherError(f"the checkpoint {folder} has weights that are not finite: {_some(broken)}")
        for name, _ in model.named_parameters():
            family_of(config).axes(name)  # what a student cannot have is told before anything is computed
        if hasattr(processor, "get_vocab") and (ids := len(processor)) > config.vocab_size:
            raise TeacherError(
                f"the checkpoint {folder} has {config.vocab_size} embeddings for a tokenizer of {ids} tokens; "
                "save the two together"
            )
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            raise TeacherError(f"attention in {folder} is scaled by the layer's number; a student's layers have others")
        turned = getattr(config, "rope_parameters", None) or {}  # of all layers, or of each kind of them
        if any(kind.get("rope_type") == "dynamic" for kind in (turned, *turned.values()) if isinstance(kind, dict)):
            raise TeacherError(
                f"positions in {folder} are turned by the length of the text (rope_type dynamic), which no graph does; "
                "take a checkpoint with another rope_type"
            )
        return model, processor

    def model(self, **placing: Any) -> PreTrainedModel:
        """The model alone, in a class of its task.

        Args:
            placing: where its weights go, and in eight bits, as `from_pretrained` has it.
        """
        import torch
        import transformers

        folder = self.folder
        config = transformers.AutoConfig.from_pretrained(folder, **self._local)
        for name, value in PLAIN.items():
            setattr(config, name, value)
        if self.task and self.task not in tasks_of(config):
            raise TeacherError(
                f"a {config.model_type} is a teacher for {', '.join(tasks_of(config))}; --task asks for {self.task}"
            )
        kind = next(kind for name, kind in TASKS.items() if name == (self.task or task_of(config)))
        model, info = getattr(transformers, kind.auto_class).from_pretrained(
            folder,
            config=config,
            **self._local,
            use_safetensors=True,
            dtype="auto" if self.dtype == "int8" else getattr(torch, self.dtype),
            attn_implementation=attention_of(config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **placing,
        )
        if unlike := sorted(info["mismatched_keys"]):
            name, found, wanted = unlike[0]
            raise TeacherError(
                f"the checkpoint {folder} has a {name} of {tuple(found)}; its config.json says {tuple(wanted)}"
            )
        model.config.architectures = [type(model).__name__]
        if getattr(model, "pooler", None) is not None and kind.head == "none":
            model.pooler = None  # embeddings are pooled of the last hidden states; many checkpoints have none
        if missing := sorted(set(info["missing_keys"]) & set(model.state_dict())):
            raise TeacherError(
                f"the checkpoint {folder} has no weights for {_some(missing)}, which a "
                f"{type(model).__name__} has: it is damaged, or was made for something else (--task)"
            )
        whole: PreTrainedModel = model.eval().requires_grad_(False)
        return whole

    def weights(self) -> list[tuple[str, int]]:
        """The type of each stored tensor, as safetensors calls it, and how many values it has; none where that cannot
        be told."""
        return [(kind, count) for _, kind, count in self._stored()]

    def _stored(self) -> list[tuple[str, str, int]]:
        """Name, type and number of values of each stored tensor."""
        from safetensors import SafetensorError, safe_open

        found = []
        try:
            for path in self.folder.glob("*.safetensors"):
                if path.name.startswith("consolidated"):  # the same once more, under other names
                    continue
                with safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        part = file.get_slice(name)
                        found.append((name, str(part.get_dtype()), math.prod(part.get_shape())))
        except (OSError, SafetensorError):  # told once it is read
            return []
        return found

    def _check_floats(self, entries: dict[str, Any]) -> None:
        """Raise where weights are quantised already: there is no float to cut students out of.

        Raises:
            TeacherError: they are.
        """
        kinds = sorted({kind for name, kind, _ in self._stored() if name.endswith("weight") and kind in NARROW})
        if (how := entries.get("quantization_config")) or kinds:
            method = how.get("quant_method") if isinstance(how, dict) else None
            raise TeacherError(
                f"the checkpoint {self.folder} is quantised already ({method or ', '.join(kinds) or how}); students "
                "are cut out of float weights: give the checkpoint that it was made from"
            )

    def own_bytes(self) -> int:
        """What every process has of the weights for itself: all that are not stored in the floats that are asked for;
        0 where that cannot be told."""
        if self.dtype == "int8":
            return 0
        size, kind = (2, {"bfloat16": "BF16", "float16": "F16"}[self.dtype]) if "16" in self.dtype else (4, "F32")
        return sum(size * count for stored, count in self.weights() if stored != kind)

    def _processor(self, sees: bool) -> Any:
        """The tokenizer of a checkpoint, or the image processor of one that sees images."""
        import transformers

        folder = self.folder
        kind, files = ("image processor", (IMAGES,)) if sees else ("tokenizer", TOKENIZERS)
        if not any((folder / file).is_file() for file in files):  # Transformers makes an empty tokenizer up
            raise TeacherError(f"no {kind} in {folder} ({', '.join(files)}); save the model's own beside it")
        auto = transformers.AutoImageProcessor if sees else transformers.AutoTokenizer
        return auto.from_pretrained(folder, **self._local)

    def _about_code(self) -> str:
        """The way out, where a checkpoint brings code of its own."""
        brings = not self.trusted and any(b"auto_map" in path.read_bytes() for path in self.folder.glob("*config.json"))
        return ". It brings code of its own; --trust-remote-code runs it" if brings else ""

    @property
    def code(self) -> bytes:
        """What is trusted to be run."""
        files = sorted(self.folder.glob("*.py")) if self.trusted else []
        return b"".join(file.read_bytes() for file in files)

    @property
    def _local(self) -> dict[str, Any]:
        """Left open, whether code is trusted is asked on the terminal."""
        return {"local_files_only": True, "trust_remote_code": self.trusted}


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _quiet() -> None:
    """Transformers prints progress bars and advice to stderr; ours are elsewhere. Nothing is fetched unasked."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    for name in ("transformers", "accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
