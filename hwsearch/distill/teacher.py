"""The teacher: loaded once, its outputs computed once and kept on disk by content.

A distillation step never runs the teacher. The key is a hash of the weights, the tokens and what is kept of an answer,
so that a changed teacher or text never meets old outputs.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from hwsearch.distill.families import architecture_of, attention_of, image_of, task_of, tasks_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.job import DType
from hwsearch.distill.objectives import objective_of
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.objectives.outputs import TEMPERATURE, TOP_K, Outputs
from hwsearch.errors import TeacherError
from hwsearch.files import read_or_drop, whole
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

BATCH = 32  # rows at once, fewer where these are long or there is much to choose from
VALUES = 2**26  # of the widest tensor of a pass: 256 MiB in float32
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")
IMAGES = "preprocessor_config.json"
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # left open, it is asked on the terminal


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that students are cut out of.

    Attributes:
        name: what a person calls it.
        model: in evaluation mode, in the floats that were asked for.
        processor: beside it: a tokenizer, or what cuts images to the size that it sees.
        objective: what it was made for.
        digest: hash of the weights, the configuration and the processor, 16 hex digits.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    objective: Objective
    digest: str


def embedded_teacher() -> Path:
    """The folder of the teacher that comes with hwsearch."""
    return Path(__file__).parent.parent / "embedded_teacher"


def load_teacher(source: str | None, task: str = "", dtype: DType = "float32") -> Teacher:
    """Load a checkpoint from a folder, or the embedded one.

    Args:
        source: the folder.
        task: what it is for; by default what it says itself.
        dtype: of its weights.

    Raises:
        TeacherError: no checkpoint there, a broken one, or one of a family or for a task that is not supported.
    """
    _quiet()
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
        model, processor = _load(folder, task, dtype)
        config = model.config
    except TeacherError:
        raise
    except Exception as error:  # Transformers, safetensors and JSON raise a dozen kinds for a broken folder
        reason = next(iter(str(error).splitlines()), "")
        raise TeacherError(f"cannot load the checkpoint {folder}: {type(error).__name__}: {reason}") from error
    if broken := [name for name, weight in model.state_dict().items() if not bool(torch.isfinite(weight).all())]:
        raise TeacherError(f"the checkpoint {folder} has weights that are not finite: {_some(broken)}")
    if hasattr(processor, "get_vocab") and (ids := len(processor)) > config.vocab_size:
        raise TeacherError(
            f"the checkpoint {folder} has {config.vocab_size} embeddings for a tokenizer of {ids} tokens; "
            "save the two together"
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise TeacherError(f"attention in {folder} is scaled by the layer's number; a student's layers have others")
    objective = objective_of(config, processor, folder)
    return Teacher(name, model.eval().requires_grad_(False), processor, objective, _digest(model, processor))


def _load(folder: Path, task: str, dtype: DType) -> tuple[Any, Any]:
    """The model, in a class of its task, and its processor."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    if task and task not in tasks_of(config):
        raise TeacherError(
            f"a {config.model_type} is a teacher for {', '.join(tasks_of(config))}; --task asks for {task}"
        )
    kind = next(kind for name, kind in TASKS.items() if name == (task or task_of(config)))
    model, info = getattr(transformers, kind.auto_class).from_pretrained(
        folder,
        config=config,
        **LOCAL,
        use_safetensors=True,
        dtype=getattr(torch, dtype),
        attn_implementation=attention_of(config),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
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
    return model, _processor(folder, image_of(config.to_dict()) is not None)


def _processor(folder: Path, sees: bool) -> Any:
    """The tokenizer of a checkpoint, or the image processor of one that sees images."""
    import transformers

    kind, files = ("image processor", (IMAGES,)) if sees else ("tokenizer", TOKENIZERS)
    if not any((folder / file).is_file() for file in files):  # Transformers makes an empty tokenizer up
        raise TeacherError(f"no {kind} in {folder} ({', '.join(files)}); save the model's own beside it")
    auto = transformers.AutoImageProcessor if sees else transformers.AutoTokenizer
    return auto.from_pretrained(folder, **LOCAL)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def load_further(source: str, teacher: Teacher, dtype: DType = "float32") -> Teacher:
    """Load another checkpoint whose answers students of `teacher` learn from as well.

    Raises:
        TeacherError: as of `load_teacher`, or its answers are of other tokens or classes.
    """
    further = load_teacher(source, task_of(teacher.model.config), dtype)
    if _vocabulary(further.processor) != _vocabulary(teacher.processor):
        raise TeacherError(
            f"{source} reads its inputs otherwise than {teacher.name}; a further teacher has the same tokenizer"
        )
    own, other = (dict(t.model.config.label2id or {}) for t in (teacher, further))
    if own != other:
        raise TeacherError(f"{source} knows other classes than {teacher.name}; a further teacher has the same")
    if (found := answers_of(further)) != (wanted := answers_of(teacher)):
        raise TeacherError(f"{source} chooses from {found} answers, {teacher.name} from {wanted}; they are to be alike")
    return further


def continued(teacher: Teacher, chunks: NDArray[np.int64], cache: Path, device: str = "cpu") -> NDArray[np.int64]:
    """Chunks, [chunks, tokens], of which a language model has drawn all behind the first quarter, from the cache or
    drawn and cached; arguments as of `teacher_outputs`."""
    settings = f"{teacher.digest} sampled {chunks.shape} "
    key = hashlib.sha256(settings.encode() + np.ascontiguousarray(chunks).tobytes())
    path = cache / f"{key.hexdigest()[:24]}.safetensors"
    if (stored := read_or_drop(path, load_file)) is not None:
        return stored["chunks"].numpy()
    from transformers import GenerationConfig

    length, given = chunks.shape[1], max(1, chunks.shape[1] // 4)
    plain = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=length - given)
    model: Any = teacher.model
    own, model.generation_config = model.generation_config, GenerationConfig()  # whose entries fill up missing ones
    model.to(device)
    try:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(int(key.hexdigest()[:8], 16))
            prompts = torch.from_numpy(chunks[:, :given]).to(device)
            written = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=plain).cpu()
    finally:
        model.generation_config = own
        model.to("cpu")
    with whole(path) as temporary:
        temporary.write_bytes(save({"chunks": written.contiguous()}))
    found: NDArray[np.int64] = written.numpy()
    return found


def teacher_outputs(teacher: Teacher, chunks: NDArray[np.int64], cache: Path, device: str = "cpu") -> Outputs:
    """The teacher's outputs on `chunks`, [chunks, tokens], from the cache or computed and cached.

    Args:
        teacher: whose.
        chunks: as its objective draws them.
        cache: folder that keeps them.
        device: to compute on; the teacher is back on the CPU afterwards, where students are cut out of it.
    """
    objective = teacher.objective
    settings = f"{teacher.digest} {type(objective).__name__} {TOP_K} {TEMPERATURE} {chunks.shape} "
    key = hashlib.sha256(settings.encode() + np.ascontiguousarray(chunks).tobytes()).hexdigest()[:24]
    path = cache / f"{key}.npz"
    if (stored := read_or_drop(path, objective.outputs.read)) is not None:
        return stored
    model: Any = teacher.model
    model.to(device)
    try:
        with torch.inference_mode():
            parts = torch.from_numpy(chunks).split(rows_at_once(teacher, chunks.shape[1]))
            found = objective.outputs.join((objective.said(model, part.to(device)) for part in parts), len(chunks))
    finally:
        model.to("cpu")
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **found.arrays())
    return found


def answers_of(teacher: Teacher) -> int:
    """How many tokens or classes there are to choose from; channels, of embeddings."""
    config = teacher.model.config
    head = TASKS[task_of(config)].head
    if head == "none":
        return architecture_of(config, Precision.FP32).width
    return int(config.vocab_size if head == "lm" else config.num_labels or 0)


def rows_at_once(teacher: Teacher, tokens: int) -> int:
    """As many as keep the widest tensor, logits or a feed-forward part's, within `VALUES`."""
    sizes = architecture_of(teacher.model.config, Precision.FP32)
    widest = max(sizes.layers[0].ffn, sizes.width, sizes.vocab if sizes.head == "lm" else 0)
    return max(1, min(BATCH, VALUES // (tokens * widest)))


def _vocabulary(processor: Any) -> Any:
    """What a tokenizer knows, or how an image processor cuts."""
    return processor.get_vocab() if hasattr(processor, "get_vocab") else processor.to_json_string()


def _digest(model: PreTrainedModel, processor: Any) -> str:
    digest = hashlib.sha256(model.config.to_json_string().encode())
    fast = getattr(processor, "backend_tokenizer", None)
    known = _vocabulary(processor)
    if isinstance(known, dict):
        known = fast.to_str() if fast is not None else repr(sorted(known.items()))
    digest.update(known.encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _quiet() -> None:
    """Transformers prints progress bars and advice to stderr; ours are elsewhere. Nothing is fetched unasked."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
