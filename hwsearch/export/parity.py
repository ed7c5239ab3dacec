"""Does an exported graph compute what the student computes? Checked on held-out text at every export, before the folder
appears.

Sums that are taken in another order differ in their last bits. In an int8 part such a bit decides now and then to
which side a value is rounded, so that no two implementations agree to the last digit; what is asked is that they
disagree far less than rounding itself does. Where the bit decides over the zero point of a whole tensor they do not:
the graph may then be as near to the student computed in float64, which has taken the other side. And there are students
in which a last bit grows from layer to layer: weights that differ by 1e-7 make of such a one (4 x 160 in int8, trained
for 10,293 steps) something that is 17 % of what rounding causes away from it, of a 6 x 160 after 16,053 steps 27 to
42 %. Then a graph cannot be nearer than the student is to itself where last bits differ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from hwsearch.distill.losses import kl_of_each, summed_kl
from hwsearch.distill.objectives.objective import Inputs
from hwsearch.errors import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Objective

RELATIVE = {False: 1e-4, True: 2e-2}  # largest difference of logits over the largest logit; in float32 and in float16
SHARE = 0.1  # of the KL that quantisation causes, which the graph's from the student may be
NOTHING = 1e-5  # nats that are no fault, however little quantisation causes
TOKENS = 14  # of a text that are read one by one
ARITHMETIC = 2.0  # times the KL that the student has from itself where last bits differ
LAST_BIT = 1e-7  # of a weight in float32, about
COPIES = 3  # of the student with other last bits; that it has in float64 is another, and any of them may be very near
HALF_SHARE = 0.25  # by which float16 may raise the KL that quantisation causes
SURE = 2.0  # standard errors beyond that: of a classifier's twenty texts the mean says little
# Entries of ONNX Runtime's session without which it computes something else: it rounds the activations too where
# weights alone are in eight bits, and on x86 without VNNI its products of int8 saturate in 16 bits
# (microsoft/onnxruntime#6004).
FLOAT_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "0")
WIDE_PRODUCTS = ("session.x64quantprecision", "1")
Run = Callable[[Inputs], Tensor]
Choices = Callable[[Tensor, Inputs], Tensor]


class Parity(msgspec.Struct, frozen=True):
    """How far a graph is from its student.

    Attributes:
        answers: that were compared.
        difference: largest of two logits, over the largest logit.
        kl: of the graph from the student, nats an answer.
        kl_of_rounding: of the student from itself with every part in float; 0 without quantised parts.
        kl_from_float: of the graph from the student with every part in float.
        disagreements: answers whose likeliest class differs.
        margin: of these, the lead that the student's likeliest class has where it is the largest beside what
            quantisation does there, in logits.
        step: most that quantisation changes a logit of that answer by, and no less than the root mean square over all.
        half: whether float parts are in float16.
        student: what the student was computed in.
        kl_of_arithmetic: as of `of_last_bits`; 0 where the graph is near without asking.
        unsure: standard error of how much larger `kl_from_float` is than `kl_of_rounding`.
    """

    answers: int
    difference: float
    kl: float
    kl_of_rounding: float
    kl_from_float: float
    disagreements: int
    margin: float
    step: float
    half: bool
    student: Literal["float32", "float64"] = "float32"
    kl_of_arithmetic: float = 0.0
    unsure: float = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong; None where nothing is."""
        quantised = self.kl_of_rounding > 0
        if not math.isfinite(self.difference):
            return "it gives numbers that are not finite"
        if not quantised and self.difference > RELATIVE[self.half]:
            return f"logits differ by {self.difference:.1e} of the largest; {RELATIVE[self.half]:.0e} at most"
        if quantised and self.half:
            most = self.kl_of_rounding + max(HALF_SHARE * self.kl_of_rounding, NOTHING) + SURE * self.unsure
            if self.kl_from_float > most:
                return f"the KL from the float student is {self.kl_from_float:.2e} nats; {most:.2e} at most"
            return None
        near, own = max(SHARE * self.kl_of_rounding, NOTHING), ARITHMETIC * self.kl_of_arithmetic
        if quantised and self.kl > max(near, own):
            return f"the KL from the student is {self.kl:.2e} nats; {max(near, own):.2e} at most"
        # A student that is so far from itself changes its own answers, with few classes also where it leads.
        if quantised and self.margin > self.step and own <= near:
            return (
                f"the answer changes where it leads by {self.margin:.2g}; rounding changes its logits by "
                f"{self.step:.2g} at most"
            )
        return None


def compare(
    own: Run,
    in_float: Run | None,
    graph: Run,
    choices: Choices,
    texts: Iterable[Inputs],
    half: bool,
) -> Parity:
    """A graph beside its student.

    Args:
        own: the student.
        in_float: the student with every part in float; None where it has no quantised parts.
        graph: that was exported.
        choices: logits of an answer, as of `Objective`.
        texts: batches of inputs.
        half: whether the graph's float parts are in float16.
    """
    kl = rounding = from_float = square = 0.0
    answers = logits = differ = 0
    largest = difference = 0.0
    rises = list[Tensor]()  # of each answer's KL from the float student
    leads = [(0.0, 0.0)]  # of answers that change: the student's, and most that quantisation changes a logit by
    for inputs in texts:
        with torch.inference_mode():
            wanted = choices(own(inputs), inputs).detach().float()
            plain = choices(in_float(inputs), inputs).detach().float() if in_float else wanted
            found = choices(graph(inputs), inputs).float()
        if not bool(found.isfinite().all()):
            found, difference = wanted, math.inf
        kl += summed_kl(wanted, found)
        graphs, students = kl_of_each(plain, found), kl_of_each(plain, wanted)
        from_float, rounding = from_float + float(graphs.sum()), rounding + float(students.sum())
        rises.append(graphs - students)
        square += float((wanted - plain).square().sum())
        difference = max(difference, float((wanted - found).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
        answers, logits = answers + len(wanted), logits + wanted.numel()
        changed = wanted.argmax(-1) != found.argmax(-1)
        best = wanted[changed].topk(2).values
        differ += int(changed.sum())
        moved = (wanted - plain)[changed].abs().amax(-1)
        leads += zip((best[:, 0] - best[:, 1]).tolist(), moved.tolist(), strict=True)
    least = (square / logits) ** 0.5
    margin, moved_by = max(leads, key=lambda lead: lead[0] / max(lead[1], least, 1e-12))
    return Parity(
        answers=answers,
        difference=difference / max(largest, 1e-12),
        kl=kl / answers,
        kl_of_rounding=max(0.0, rounding) / answers,
        kl_from_float=max(0.0, from_float) / answers,
        disagreements=differ,
        margin=margin,
        step=max(moved_by, least),
        half=half,
        unsure=float(torch.cat(rises).std()) / answers**0.5 if answers > 1 else 0.0,
    )


def of_last_bits(
    runs: Callable[[PreTrainedModel], Run],
    student: PreTrainedModel,
    choices: Choices,
    texts: Collection[Inputs],
) -> float:
    """The most KL that a student has from itself where last bits differ, nats an answer: in float64, and there with
    weights that differ by `LAST_BIT` besides.

    Args:
        runs: what runs a model.
        student: in float32.
        choices: logits of an answer, as of `Objective`.
        texts: batches of inputs.
    """
    own = runs(student)
    return max(compare(own, None, runs(model), choices, texts, False).kl for model in _with_other_last_bits(student))


def _with_other_last_bits(student: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A student in float64, and copies of that with weights moved, one at a time: each takes twice its memory."""
    wide = copy.deepcopy(student).double()
    yield wide
    for seed in range(COPIES):
        moved, generator = copy.deepcopy(wide), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in moved.parameters():
                weight.mul_(1 + LAST_BIT * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        yield moved


def demand(parity: Parity, name: str) -> None:
    """Raise unless a graph computes what its student does.

    Raises:
        ExportError: it does not.
    """
    if fault := parity.fault:
        raise ExportError(
            f"{name} does not compute what the student computes: {fault}. It was not written; report this as a bug"
        )


def session(path: Path) -> Any:
    """ONNX Runtime's session of a graph, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    for entry in (FLOAT_ACTIVATIONS, WIDE_PRODUCTS):
        options.add_session_config_entry(*entry)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def whole(path: Path) -> Run:
    """A graph of one forward pass."""
    opened = session(path)

    def run(inputs: Inputs) -> Tensor:
        (logits,) = opened.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(logits)

    return run


def continued(path: Path) -> Run:
    """A graph with cached keys and values, on a text in some goes; the logits of the last position of each."""
    opened = session(path)
    caches = [entry for entry in opened.get_inputs() if entry.name.startswith("past.")]
    kind = np.float16 if caches[0].type == "tensor(float16)" else np.float32

    def run(inputs: Inputs) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        past = {entry.name: np.zeros((len(ids), entry.shape[1], 0, entry.shape[3]), kind) for entry in caches}
        found = []
        for start, end in goes(ids):
            given = {"input_ids": ids[:, start:end].numpy(), "attention_mask": mask[:, :end].numpy()}
            logits, *present = opened.run(None, {**given, **past})
            past = dict(zip(past, present, strict=True))
            found.append(torch.from_numpy(logits))
        return torch.cat(found, 1)

    return run


def student_continued(model: PreTrainedModel) -> Run:
    """The same of the student itself."""
    from transformers import DynamicCache

    def run(inputs: Inputs) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        cache, found = DynamicCache(), []
        for start, end in goes(ids):
            given: Any = {"attention_mask": mask[:, :end], "past_key_values": cache, "use_cache": True}
            found.append(model(input_ids=ids[:, start:end], logits_to_keep=1, **given).logits)
        return torch.cat(found, 1)

    return run


def student_whole(objective: Objective, model: PreTrainedModel) -> Run:
    """One forward pass of the student itself."""
    return partial(objective.answer, model)


def goes(ids: Tensor) -> list[tuple[int, int]]:
    """A prompt, tokens one by one, and the rest."""
    half, end = ids.shape[1] // 2, ids.shape[1]
    ends = [half, *range(half + 1, min(half + TOKENS, end - 1) + 1), end]
    return [(a, b) for a, b in pairwise([0, *ends]) if a < b]
