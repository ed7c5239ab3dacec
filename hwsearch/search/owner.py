"""Who trains a trial: one thread of work in a process on a machine, by a name that says whether it is still alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psutil

LEFT = "left"  # owner of what was begun and given up

_members: set[str] = set()  # of this process
_numbers = count()


@contextmanager
def membership() -> Iterator[str]:
    """A name to own trials by, for as long as the block lasts."""
    name = f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{next(_numbers)}"
    _members.add(name)
    try:
        yield name
    finally:
        _members.discard(name)


def alive(owner: str) -> bool | None:
    """Whether an owner still works; None where that cannot be seen from this machine."""
    if owner == LEFT:
        return False
    host, pid, born, _ = owner.split("/")
    if host != socket.gethostname():
        return None
    if int(pid) == os.getpid():
        return owner in _members
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == born
    except psutil.NoSuchProcess:
        return False
