"""A sentence encoder says which texts are near each other. Rows are token ids, and in the last two columns the text's
label and, of one of a pair, how near its other text is.

What a student is asked of a text is the teacher's distribution over the other texts of the batch, a softmax of their
cosines: relations between samples (Park et al. 2019, arXiv:1904.05068), which need no layer between embeddings of
different widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor

from hwsearch.distill.data import Corpus
from hwsearch.distill.objectives.classes import Padded, files_of
from hwsearch.distill.objectives.objective import Inputs, products
from hwsearch.distill.objectives.outputs import TEMPERATURE, Outputs, Vectors, judged_together, nearness
from hwsearch.distill.rows import BESIDE, NO_SCORE, SCORE, UNLABELLED, draw_texts, places, sentences
from hwsearch.errors import TeacherError
from hwsearch.files import pretty, read_as, read_json, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hwsearch.distill.job import TaskSpec

Pooling = Literal["mean", "cls"]
OLDER = "pooling_mode_"
POOLING = Path("1_Pooling") / "config.json"  # as sentence-transformers keeps it
PROMPTS = "config_sentence_transformers.json"
# The longest text, by the kind of encoder in older versions; of several the first is read.
LONGEST = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


class Module(msgspec.Struct):
    """An entry of the list of modules that sentence-transformers keeps.

    Attributes:
        type: its class.
    """

    type: str


class Neighbours(Padded):
    """The nearest text of a batch.

    Args:
        tokenizer: of the teacher.
        pooling: how the last hidden states become one vector.
        entries: of the teacher's pooling, beside those that say how.
        beside: files of the teacher's folder that a student's gets as they are, by name.
    """

    output = "sentence_embedding"
    outputs: ClassVar[type[Outputs]] = Vectors

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        beside: Mapping[str, str] | None = None,
        entries: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.pooling, self.beside, self.entries = pooling, dict(beside or {}), dict(entries or {})

    def read(self, spec: TaskSpec) -> Corpus:
        """Texts, or pairs of them."""
        return sentences(*files_of(spec, "a sentence encoder"), spec.text_column, spec.label_column)

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[np.int64]:
        """Each text a row; of pairs first the one half, then the other, so that few are judged beside their own."""
        if not any(BESIDE in text for text in texts):
            rows = draw_texts(texts, labels, self.tokenizer, count, sequence, seed)
            if seed is None:  # a file may be in the order of its labels, and texts are judged beside their neighbours
                rows = np.random.default_rng(0).permutation(rows)
            return np.pad(rows, ((0, 0), (0, 1)), constant_values=NO_SCORE)
        drawn = places(len(texts), max(1, count // 2), seed)
        halves = zip(*(texts[place].split(BESIDE) for place in drawn), strict=True)
        every = [text for half in halves for text in half]
        rows = draw_texts(every, [UNLABELLED] * len(every), self.tokenizer, len(every), sequence, None)
        return np.column_stack([rows, np.tile(np.asarray(labels, np.int64)[drawn], 2)])

    def ids(self, chunks: Any) -> Any:
        """All but the last two."""
        return chunks[:, :-2]

    def labels(self, chunks: Any) -> Any:
        """Which text is the nearest, nobody knows but the teacher."""
        return 0 * chunks[:, -1:] + UNLABELLED

    def hits(
        self, chunks: NDArray[np.int64], labels: NDArray[np.int64], best: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """A text of the same label is right, of those that stand beside any; without labels the teacher's nearest."""
        classes = chunks[:, -2]
        right, judged = np.zeros_like(labels, bool), np.zeros_like(labels, bool)
        for rows in judged_together(len(chunks)):
            own = classes[rows]
            others = (own[:, None] == own).sum(1) > 1
            judged[rows, 0] = others & (own != UNLABELLED)
            right[rows, 0] = own[best[rows, 0]] == own
        return (right, judged) if judged.any() else super().hits(chunks, labels, best)

    def scores(self, chunks: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """How near the texts of each pair are said to be, [pairs]; NaN where nobody has said. None where there are no
        pairs."""
        given = chunks[: len(chunks) // 2, -1]
        if (given == NO_SCORE).all():
            return None
        return np.where(given == NO_SCORE, np.nan, given / SCORE)

    def nearness_of_pairs(self, model: PreTrainedModel, chunks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cosines of the texts of each pair by a model, [pairs]."""
        with torch.inference_mode():
            parts = [
                self.answer(model, self.inputs(torch.from_numpy(chunks[rows]).to(model.device))).cpu()
                for rows in judged_together(len(chunks))
            ]
        first, second = torch.cat(parts).double().chunk(2)
        found: NDArray[np.float64] = (first * second).sum(1).numpy()
        return found

    def answer(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Vectors of unit length, [rows, width]."""
        hidden = model(**inputs).last_hidden_state.float()
        there = inputs["attention_mask"].unsqueeze(-1).float()
        pooled = hidden[:, 0] if self.pooling == "cls" else (hidden * there).sum(1) / there.sum(1).clamp_min(1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def choices(self, answer: Tensor, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """The channels, as far apart as cosines are: a text may be alone."""
        return answer / TEMPERATURE

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of the other texts, one answer each."""
        with products(chunks):
            vectors = self.answer(model, self.inputs(chunks))
        return nearness(vectors).unsqueeze(1)

    def said(self, model: PreTrainedModel, chunks: Tensor) -> Outputs:
        """The vectors: which texts stand together is not known yet."""
        return Vectors(self.answer(model, self.inputs(chunks)).half().cpu().numpy())

    def save(self, folder: Path, config: PretrainedConfig) -> None:
        """What sentence-transformers loads it by."""
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(MODULES)
        ]
        write_text(folder / "modules.json", pretty(modules) + "\n")
        for path, _ in MODULES[1:]:
            (folder / path).mkdir(exist_ok=True)
        width = int(config.hidden_size)
        pooling = self.entries | {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
        }
        write_text(folder / POOLING, pretty(pooling) + "\n")
        for name, text in self.beside.items():
            write_text(folder / name, text)


def settings_of(folder: Path) -> dict[str, str]:
    """What else sentence-transformers reads of a checkpoint: its longest text, in the file that newer versions have for
    it, and its prompts, by file.

    Raises:
        TeacherError: texts are put behind a prompt, which students do not read.
    """
    longest = next((name for name in LONGEST if (folder / name).is_file()), LONGEST[0])
    files = {LONGEST[0]: folder / longest, PROMPTS: folder / PROMPTS}
    found = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    if PROMPTS in found and (prompt := read_json(folder / PROMPTS).get("default_prompt_name")):
        raise TeacherError(
            f"{folder} puts its prompt {prompt!r} before every text, which students are not trained for; put it before "
            f"the texts, and set default_prompt_name to null in {PROMPTS}"
        )
    return found


def pooling_entries(folder: Path) -> dict[str, Any]:
    """Whether a checkpoint's prompts are pooled too, where its folder says so."""
    entries = read_json(folder / POOLING) if (folder / POOLING).is_file() else {}
    return {name: value for name, value in entries.items() if name == "include_prompt"}


def pooling_of(folder: Path) -> Pooling:
    """How a checkpoint's vectors are pooled: as the folder of sentence-transformers says, else by their mean.

    Raises:
        TeacherError: in a way that students are not trained for, or something else follows.
    """
    if (modules := folder / "modules.json").is_file():
        kinds = [module.type.rpartition(".")[2] for module in read_as(modules, list[Module])]
        if further := sorted(set(kinds) - {kind for _, kind in MODULES}):
            raise TeacherError(f"embeddings of {folder} go through {', '.join(further)}; students have no such module")
    if not (path := folder / POOLING).is_file():
        return "mean"
    entries = read_json(path)
    ways = entries.get("pooling_mode")  # one entry, or one for each way, as older versions wrote them
    if ways is None:
        on = [name for name, is_on in entries.items() if name.startswith(OLDER) and is_on]
        ways = [name.removeprefix(OLDER).removesuffix("s").removesuffix("_token") for name in on]
    ways = [ways] if isinstance(ways, str) else list(ways)
    for way in get_args(Pooling):
        if ways == [way]:
            return cast("Pooling", way)
    raise TeacherError(f"{path} pools by {', '.join(map(str, ways)) or 'nothing'}; students are pooled by mean or cls")
