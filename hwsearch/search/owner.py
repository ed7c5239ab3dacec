"""Who trains a trial: one thread of work in a process on a machine, by a name that says whether it is still alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import psutil

LEFT = "left"  # owner of what was begun and given up
SAME_S = 2.0  # births of one process, as read twice, lie nearer to one another: the kernel tells its own to a second

_members: set[str] = set()  # of this process
_numbers = count()


@contextmanager
def membership() -> Iterator[str]:
    """A name to own trials by, for as long as the block lasts."""
    name = f"{_place()}/{os.getpid()}/{_born(psutil.Process()):.2f}/{next(_numbers)}"
    _members.add(name)
    try:
        yield name
    finally:
        _members.discard(name)


def alive(owner: str) -> bool | None:
    """Whether an owner still works; None where that cannot be seen from here."""
    if owner == LEFT:
        return False
    place, pid, born, _ = owner.split("/")
    if place != _place():
        return None
    if int(pid) == os.getpid():
        return owner in _members
    try:
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and abs(_born(process) - float(born)) < SAME_S
    except psutil.NoSuchProcess:
        return False


@cache
def _place() -> str:
    """Where processes see one another: a host since it was started, and in it a namespace, for containers may share a
    host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{socket.gethostname()}:{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def _born(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process': a clock that is set moves both ends alike."""
    return float(process.create_time() - psutil.boot_time())
