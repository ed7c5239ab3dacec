"""Progress on stderr: a live line with the remaining time on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from hwsearch import interrupt
from hwsearch.units import format_seconds

QUIET_SECONDS = 15.0  # between plain lines


class Progress:
    """A context in which stages are announced and advanced."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._rich: Any = None
        self._task: Any = None
        self._name, self._total = "", 0.0
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description:<20}"),
                BarColumn(32),
                TextColumn("{task.percentage:>4.0f} %"),
                TimeElapsedColumn(),
            )
            self._rich = Bars(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True)
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, total: float) -> None:
        """A new stage of `total` units begins."""
        self._name, self._total = name, max(total, 1e-9)
        self._started = self._told = time.monotonic()
        if self._rich is not None:
            if self._task is not None:
                self._rich.remove_task(self._task)
            self._task = self._rich.add_task(name, total=self._total, left="")

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        """`done` units of the stage are behind; `total` may have changed.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C that was dropped.
        """
        interrupt.check()
        self._total = total or self._total
        share = min(1.0, done / self._total)
        elapsed = time.monotonic() - self._started
        left = f"about {format_seconds(elapsed / share - elapsed)} left" if share > 0.02 else ""
        text = "  ".join(filter(None, (left, note)))
        if self._rich is not None:
            self._rich.update(self._task, completed=done, total=self._total, left=text)
        elif time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            print(f"{self._name}: {share:.0%}  {text}".rstrip(), file=sys.stderr, flush=True)
