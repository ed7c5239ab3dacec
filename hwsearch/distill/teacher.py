"""The teacher: loaded once, its outputs computed once and kept on disk by content.

A step of distillation on its answers never runs the teacher; recipes that look at hidden states or attention do. The
key is a hash of our version, the weights, the tokens and what is kept of an answer, so that a changed teacher or text
never meets old outputs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from hwsearch import __version__
from hwsearch.distill.checkpoint import Checkpoint
from hwsearch.distill.families import architecture_of, rows_at_once, task_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.job import DType, TaskSpec
from hwsearch.distill.objectives import objective_of
from hwsearch.distill.objectives.classes import Pairs, names_of
from hwsearch.distill.objectives.image_classes import ImageClasses
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.objectives.outputs import TEMPERATURE, TOP_K, Outputs
from hwsearch.errors import TeacherError
from hwsearch.files import read_or_drop, whole
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

COMPUTING = 2**31  # bytes of a GPU that a pass takes beside the weights
CACHED = 2**28  # keys and values that are kept at once while it writes: 1 GiB in float32


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that students are cut out of.

    Attributes:
        name: what a person calls it.
        model: in evaluation mode, in the floats that were asked for.
        processor: beside it: a tokenizer, or what cuts images to the size that it sees.
        objective: what it was made for.
        digest: hash of the weights, the configuration, the processor and the pooling, 16 hex digits; -int8 where it
            is computed in int8.
        checkpoint: that it was read from.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    objective: Objective
    digest: str
    checkpoint: Checkpoint
    _elsewhere: dict[str, PreTrainedModel] = field(default_factory=dict, repr=False)

    def at(self, device: str) -> PreTrainedModel:
        """The model where its outputs are computed, kept there until `let_go`.

        On the CPU it is the one that students are cut out of, on a GPU another: as much of it there as there is room
        for, the rest on the CPU, where accelerate is installed. `int8` has its matrices in eight bits: LLM.int8
        (Dettmers et al. 2022, arXiv:2208.07339) by bitsandbytes.

        Raises:
            TeacherError: int8 was asked for and cannot be had.
        """
        int8 = self.checkpoint.dtype == "int8"
        if device == "cpu" and not int8:
            return self.model
        if device not in self._elsewhere:
            accelerated = find_spec("accelerate") is not None
            if int8 and not (accelerated and find_spec("bitsandbytes")):
                raise TeacherError("eight-bit teachers take accelerate and bitsandbytes: pip install 'hwsearch[large]'")
            placing: dict[str, Any] = {"device_map": "auto", "max_memory": _room(device)} if accelerated else {}
            if int8:
                from transformers import BitsAndBytesConfig

                placing["quantization_config"] = BitsAndBytesConfig(
                    load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True
                )
            model: Any = self.checkpoint.model(**placing)
            self._elsewhere[device] = model if accelerated else model.to(device)
        return self._elsewhere[device]

    def let_go(self) -> None:
        """Give the room back that `at` has taken."""
        self._elsewhere.clear()


def load_teacher(
    source: str | None, task: str = "", dtype: DType = "float32", trusted: bool = False, pairs: bool = False
) -> Teacher:
    """Load a checkpoint from a folder, or the embedded one.

    Args:
        source: the folder.
        task, dtype, trusted: as of `Checkpoint`.
        pairs: of texts are what a classifier reads.

    Raises:
        TeacherError: no checkpoint there, a broken one, or one of a family or for a task that is not supported.
    """
    checkpoint = Checkpoint.of(source, task, dtype, trusted)
    model, processor = checkpoint.read()
    name = checkpoint.folder.resolve().name if source else "embedded-teacher"
    objective = objective_of(model.config, processor, checkpoint.folder, pairs)
    digest = _digest(model, processor, objective, checkpoint.code) + ("-int8" if dtype == "int8" else "")
    return Teacher(name, model, processor, objective, digest, checkpoint)


def teacher_of(spec: TaskSpec) -> Teacher:
    """The teacher of a task, as of `load_teacher`."""
    pairs = "," in spec.text_column
    return load_teacher(spec.teacher or None, spec.task, spec.teacher_dtype, spec.trust_remote_code, pairs)


def _room(device: str) -> dict[int | str, int]:
    """Bytes that a model may take, by device: of a GPU what is free, less what computing takes."""
    import psutil

    room: dict[int | str, int] = {"cpu": psutil.virtual_memory().available}
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        room[torch.device(device).index or 0] = max(0, free - COMPUTING)
    return room


def load_further(source: str, teacher: Teacher) -> Teacher:
    """Load another checkpoint whose answers students of `teacher` learn from as well.

    Raises:
        TeacherError: as of `load_teacher`, or its answers are of other tokens or classes.
    """
    own = teacher.checkpoint
    pairs = isinstance(teacher.objective, Pairs)
    further = load_teacher(source, task_of(teacher.model.config), own.dtype, own.trusted, pairs)
    if _vocabulary(further.processor) != _vocabulary(teacher.processor):
        raise TeacherError(
            f"{source} reads its inputs otherwise than {teacher.name}; a further teacher has the same tokenizer"
        )
    head = TASKS[task_of(teacher.model.config)].head
    # Of what chooses from no classes, names are what Transformers makes up, or what a configuration has kept.
    if head in ("classify", "span") and names_of(teacher.model.config) != names_of(further.model.config):
        raise TeacherError(f"{source} knows other classes than {teacher.name}; a further teacher has the same")
    by_answers = head != "none"  # embeddings are set beside each other alone
    if by_answers and (found := answers_of(further)) != (wanted := answers_of(teacher)):
        raise TeacherError(f"{source} chooses from {found} answers, {teacher.name} from {wanted}; they are to be alike")
    if isinstance(teacher.objective, ImageClasses):  # which knows where the images are
        further = replace(further, objective=teacher.objective)
    return further


def continued(teacher: Teacher, chunks: NDArray[np.int64], cache: Path, device: str = "cpu") -> NDArray[np.int64]:
    """Chunks, [chunks, tokens], of which a language model has drawn all behind the first quarter, from the cache or
    drawn and cached; arguments as of `teacher_outputs`."""
    settings = f"{__version__} {teacher.digest} sampled {chunks.shape} "
    key = hashlib.sha256(settings.encode() + np.ascontiguousarray(chunks).tobytes())
    path = cache / f"{key.hexdigest()[:24]}.safetensors"
    if (stored := read_or_drop(path, load_file)) is not None:
        return stored["chunks"].numpy()
    from transformers import GenerationConfig

    length, given = chunks.shape[1], max(1, chunks.shape[1] // 4)
    plain = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=length - given)
    model: Any = teacher.at(device)
    own, model.generation_config = model.generation_config, GenerationConfig()  # whose entries fill up missing ones
    try:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(int(key.hexdigest()[:8], 16))
            prompts = torch.from_numpy(chunks[:, :given]).to(device).split(_written_at_once(model.config, length))
            parts = [model.generate(p, attention_mask=torch.ones_like(p), generation_config=plain) for p in prompts]
            written = torch.cat(parts).cpu()
    finally:
        model.generation_config = own
    with whole(path) as temporary:
        temporary.write_bytes(save({"chunks": written.contiguous()}))
    found: NDArray[np.int64] = written.numpy()
    return found


def _written_at_once(config: PretrainedConfig, length: int) -> int:
    """Texts whose keys and values there is room for."""
    sizes = architecture_of(config, Precision.FP32)
    cached = sum(2 * layer.kv_heads * sizes.head_dim for layer in sizes.layers)
    return max(1, CACHED // (length * cached))


def teacher_outputs(teacher: Teacher, chunks: NDArray[np.int64], cache: Path, device: str = "cpu") -> Outputs:
    """The teacher's outputs on `chunks`, [chunks, tokens], from the cache or computed and cached.

    Args:
        teacher: whose.
        chunks: as its objective draws them.
        cache: folder that keeps them.
        device: to compute on.

    Raises:
        TeacherError: it answers something that is not finite.
    """
    objective = teacher.objective
    settings = f"{__version__} {teacher.digest} {type(objective).__name__} {TOP_K} {TEMPERATURE} {chunks.shape} "
    key = hashlib.sha256(settings.encode() + np.ascontiguousarray(chunks).tobytes()).hexdigest()[:24]
    path = cache / f"{key}.npz"
    if (stored := read_or_drop(path, objective.outputs.read)) is not None:
        return stored
    model = teacher.at(device)
    with torch.inference_mode():
        parts = torch.from_numpy(chunks).split(rows_at_once(model.config, chunks.shape[1]))
        found = objective.outputs.join((objective.said(model, part.to(device)) for part in parts), len(chunks))
    if not all(np.isfinite(array).all() for array in found.arrays().values()):
        floats = teacher.checkpoint.dtype
        wider = "mend the checkpoint" if floats == "float32" else "--teacher-dtype float32 reaches further"
        raise TeacherError(f"{teacher.name}'s answers to some texts are not finite when computed in {floats}; {wider}")
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


def _vocabulary(processor: Any) -> Any:
    """What a tokenizer knows, or how an image processor cuts."""
    return processor.get_vocab() if hasattr(processor, "get_vocab") else processor.to_json_string()


def _digest(model: PreTrainedModel, processor: Any, objective: Objective, code: bytes) -> str:
    config = json.loads(model.config.to_json_string())
    config.pop("transformers_version", None)  # of who has written or read it last
    digest = hashlib.sha256(json.dumps(config).encode() + code)
    # What stands beside the tokenizer's own file: which token pads, and how a sentence's vector comes about.
    roles = getattr(processor, "special_tokens_map", {})
    digest.update(repr((sorted(roles.items()), getattr(objective, "pooling", None))).encode())
    if first := getattr(objective, "first", None):
        digest.update(repr(first).encode())
    if isinstance(objective, Pairs):  # whose second text counts as another kind of one, or does not
        digest.update(type(objective).__name__.encode())
    if (cut := getattr(processor, "truncation_side", "right")) != "right":
        digest.update(cut.encode())
    fast = getattr(processor, "backend_tokenizer", None)
    known = _vocabulary(processor)
    if isinstance(known, dict):
        known = fast.to_str() if fast is not None else repr(sorted(known.items()))
    digest.update(known.encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
