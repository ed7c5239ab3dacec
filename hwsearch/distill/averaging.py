"""The average of a student's last weights, by which it is judged while its rate is constant.

At a constant rate weights wander about what a falling one would bring them to, and how far off they happen to be says
nothing of the student. Their average is nearer to it, and orders students as full training does more often
(`python benchmarks/averaging.py`). Its window grows with the run, so that it serves at any length. Where the rate falls
the weights come to rest by themselves, and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import Tensor, nn

WINDOW = 16.0  # after t steps weights of about t / WINDOW of them count


class Average:
    """Of a model's weights; it is what the model holds, but for the time that it is trained.

    Args:
        model: whose weights.
        window: w of `follow`.
    """

    def __init__(self, model: nn.Module, window: float = WINDOW) -> None:
        self._window = window
        self._weights = list(model.parameters())
        self._aside = [weight.detach().clone() for weight in self._weights]

    @property
    def last(self) -> list[Tensor]:
        """The last weights, from which training goes on; in the order of the model's parameters."""
        return self._aside

    def go_on_from(self, last: Sequence[Tensor]) -> None:
        """Have training go on from these weights."""
        for aside, weight in zip(self._aside, last, strict=True):
            aside.copy_(weight)

    @contextmanager
    def trained(self) -> Iterator[None]:
        """The model has its last weights meanwhile."""
        self._change()
        try:
            yield
        finally:
            self._change()

    def follow(self, step: int, rests: bool) -> None:
        """Take in the model's weights after step `step`; the last ones alone where they come to rest.

        The average moves by (w + 1) / (t + w) towards them after t steps: polynomial decay (Shamir and Zhang 2013,
        arXiv:1212.1824, section 4).
        """
        share = 1.0 if rests else (self._window + 1) / (step + self._window)
        get_ema_multi_avg_fn(1 - share)(tuple(self._aside), tuple(self._weights), 0)

    def _change(self) -> None:
        for number, weight in enumerate(self._weights):
            weight.data, self._aside[number] = self._aside[number], weight.data
