"""What a student is trained by: hwsearch's loss and optimiser beside others.

Every tenth student of the table (`benchmarks/students.py`) is trained each way from the same slices on the same text;
what counts is held-out KL on *select* after a short run and a longer one, over that of hwsearch's, and what a step
costs. The KL's sums go over the teacher's 32 most likely tokens and the rest as one.

- temperature: both distributions softened by 2, the KL times 4
- labels: a fifth of the loss is cross-entropy to the text itself
- both ways: half of the loss is the KL of the teacher from the student
- hidden states: besides, the distance to the teacher's stream between layers, in the student's own basis
- relations: besides, how like one another the positions of a text are, in the last hidden states
- Muon: matrices of the layers by Muon (Jordan et al. 2024), the rest by Adam

For hidden states and relations the teacher runs beside the student.

python benchmarks/losses.py [--steps 160,640] [--ways temperature,Muon]
"""

# ruff: noqa: ARG002  the terms of a loss take what all of them may need

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from students import TABLE, workshop
from torch import Tensor, nn

from hwsearch.architecture import Architecture
from hwsearch.distill.families import family_of
from hwsearch.distill.lesson import Lesson
from hwsearch.distill.proxy import Student
from hwsearch.files import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERY = 10
OWN = "hwsearch"
SMALL = 1e-6


class Other(Student):
    """Trained by another loss."""

    def _loss(self, lesson: Lesson, rows: NDArray[np.int64], piece: int = 0) -> Tensor:
        """As the class says."""
        chunks = torch.from_numpy(self.task.chunks[rows])
        indices, p = self.task.outputs.batch(rows)
        model: Any = self.model
        out = model.model(input_ids=chunks[:, :-1], use_cache=False, output_hidden_states=True)
        logits = model.lm_head(out.last_hidden_state).flatten(0, 1)
        q = torch.softmax(logits, -1).gather(-1, indices)
        both = []
        for part in (p, q):
            rest = (1 - part.sum(-1, keepdim=True)).clamp_min(SMALL)
            both.append(torch.cat([part, rest], -1).clamp_min(SMALL))
        return self.term(chunks, both[0], both[1], logits, out)

    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        """The loss of merged distributions, [positions, k + 1] each."""
        raise NotImplementedError

    def streams(self, chunks: Tensor) -> Any:
        """The teacher's hidden states."""
        with torch.no_grad():
            teacher: Any = self.task.teacher.model
            return teacher.model(input_ids=chunks[:, :-1], use_cache=False, output_hidden_states=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1).mean()


class Temperature(Other):
    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        p, q = (x.sqrt() / x.sqrt().sum(-1, keepdim=True) for x in (p, q))
        return 4 * kl(p, q)


class Labels(Other):
    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        return 0.8 * kl(p, q) + 0.2 * nn.functional.cross_entropy(logits, chunks[:, 1:].flatten())


class BothWays(Other):
    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        return 0.5 * kl(p, q) + 0.5 * kl(q, p)


class HiddenStates(Other):
    WEIGHT = 0.3

    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        teacher: Any = self.task.teacher.model
        model: Any = self.model
        if self.step == 0 or not hasattr(self, "basis"):
            # The student's embedding is the teacher's, rotated, as long as it is untrained.
            fresh: Any = Student(self.task, self.architecture, layers=self.layers).model
            theirs, own = (x.model.embed_tokens.weight.detach() for x in (teacher, fresh))
            self.basis = torch.linalg.lstsq(theirs, own).solution
        kept, theirs = self.layers, self.streams(chunks).hidden_states
        far = [
            ((out.hidden_states[i] - (wanted := theirs[kept[i]] @ self.basis)) ** 2).mean() / (wanted**2).mean()
            for i in range(1, model.config.num_hidden_layers)
        ]
        return kl(p, q) + self.WEIGHT * sum(far) / max(1, len(far))


class Relations(Other):
    WEIGHT = 3.0

    def term(self, chunks: Tensor, p: Tensor, q: Tensor, logits: Tensor, out: Any) -> Tensor:
        def alike(hidden: Tensor) -> Tensor:
            unit = nn.functional.normalize(hidden, dim=-1)
            return unit @ unit.mT

        theirs = alike(self.streams(chunks).last_hidden_state)
        return kl(p, q) + self.WEIGHT * (alike(out.last_hidden_state) - theirs).square().mean()


class Muon(Student):
    """Trained by another optimiser."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        inside = family_of(self.model.config).layers
        named = list(self.model.named_parameters())
        matrices = [weight for name, weight in named if name.startswith(inside) and weight.dim() == 2]
        rest = [weight for name, weight in named if not (name.startswith(inside) and weight.dim() == 2)]
        self.optimizer = torch.optim.Adam(rest, lr=self.rate, betas=(0.9, 0.98), fused=True)
        muon = torch.optim.Muon(matrices, lr=self.rate, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")

        def follow(optimizer: Any, *_: Any) -> None:
            for group in muon.param_groups:
                group["lr"] = optimizer.param_groups[0]["lr"]
            muon.step()
            muon.zero_grad()

        self.optimizer.register_step_post_hook(follow)


WAYS: dict[str, type[Student]] = {
    OWN: Student,
    "temperature": Temperature,
    "labels": Labels,
    "both ways": BothWays,
    "hidden states": HiddenStates,
    "relations": Relations,
    "Muon": Muon,
}


def curve(architecture: Architecture, name: str, steps: tuple[int, ...]) -> list[float]:
    """Held-out KL at each number of steps, and processor seconds a step."""
    student = WAYS[name](workshop(0).task, architecture)
    started = time.process_time()
    for stop in steps:
        student.train(stop)
        if stop == steps[0]:
            seconds = (time.process_time() - started) / stop
        student.mark(student.task.select)
    return [*(loss for _, loss in student.curve), seconds]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", default="160,640")
    parser.add_argument("--ways", default=",".join(WAYS), help="of those above, hwsearch's own besides")
    options = parser.parse_args()
    steps = tuple(int(text) for text in options.steps.split(","))
    names = [OWN, *(name for name in options.ways.split(",") if name != OWN)]
    students = [Architecture.from_json(row["architecture"]) for row in read_json(TABLE)["students"]][::EVERY]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = {name: [pool.submit(curve, a, name, steps) for a in students] for name in names}
        found = {}
        for name, futures in jobs.items():
            found[name] = np.array([future.result() for future in futures])
            print(name, np.exp(np.log(found[name] / found[OWN]).mean(0)).round(3), file=sys.stderr, flush=True)
    result = {}
    for name, values in found.items():
        over = np.exp(np.log(values / found[OWN]).mean(0)).round(4).tolist()
        ahead = (values < found[OWN]).sum(0).tolist()
        result[name] = {
            **{str(stop): {"kl_over_own": over[i], "ahead_of_own": ahead[i]} for i, stop in enumerate(steps)},
            "step_time_over_own": over[-1],
        }
    print(json.dumps({"students": [a.id for a in students], "ways": result}))


if __name__ == "__main__":
    main()
