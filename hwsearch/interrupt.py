"""Ctrl-C that is never lost and cuts no write in two.

Python raises it wherever it stands, which may be a callback of a library's, where exceptions are dropped; or between a
database's statement and its commit, which leaves a lock behind. Only the main thread is ever interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_came = False


def remember() -> None:
    """From now on `check` raises a Ctrl-C again that was dropped; where it is ignored it stays so. A request to end
    (SIGTERM: `kill`, `docker stop`, a batch system that wants the machine back) is one too."""
    global _came
    _came = False
    if _main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end)


def check() -> None:
    """Raise what was dropped.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C.
    """
    if _came:
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """A Ctrl-C waits until the block has ended, the outermost of several; a second one does not.

    Raises:
        KeyboardInterrupt: there was one meanwhile.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _main() or isinstance(before, _Hold) or not callable(before):
        yield
        return
    hold = _Hold(before)
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if hold.came:
            before(signal.SIGINT, None)


class _Hold:
    """A handler that notes the first Ctrl-C, and hands the next on to the one `before` it."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.before, self.came = before, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            self.before(number, frame)
        self.came = True


def _note(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    signal.default_int_handler(number, frame)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    handler = signal.getsignal(signal.SIGINT)  # who holds it back holds this back too
    if callable(handler):
        handler(signal.SIGINT, frame)


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()
