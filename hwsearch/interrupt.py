"""Ctrl-C that is never lost and cuts no write in two.

Python raises it wherever it stands, which may be a callback of a library's, where exceptions are dropped; or between a
database's statement and its commit, which leaves a lock behind. Only the main thread is ever interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came = False


def remember() -> None:
    """From now on `check` raises a Ctrl-C again that was dropped; where it is ignored it stays so."""
    global _came
    _came = False
    if _main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise what was dropped.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C.
    """
    if _came:
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """A Ctrl-C waits until the block has ended; for blocks of milliseconds.

    Raises:
        KeyboardInterrupt: there was one meanwhile.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _main() or not callable(before):
        yield
        return
    waiting: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(signal.SIGINT, waiting[0])


def _note(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    signal.default_int_handler(number, frame)


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()
