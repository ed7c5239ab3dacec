"""Ctrl-C: held back, or dropped by Python and raised again; tests/search/test_study.py has it amid writes."""

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hwsearch import interrupt


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """A check that runs in a shell's background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    to_end = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, to_end)
    interrupt._came = False


def test_it_waits_for_the_end_of_the_block() -> None:
    done = []

    @interrupt.held_back()
    def inner() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("inner")

    @interrupt.held_back()
    def outer() -> None:
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait() -> None:
    done = []

    @interrupt.held_back()
    @interrupt.held_back()
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("once")
        signal.raise_signal(signal.SIGINT)
        done.append("twice")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert done == ["once"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_was_dropped_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    interrupt.remember()
    interrupt.check()
    Dropping()
    assert [told.exc_type for told in dropped] == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
    interrupt.remember()
    interrupt.check()


def test_a_request_to_end_is_one_too() -> None:
    done = []

    @interrupt.held_back()
    def block() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append("block")

    interrupt.remember()
    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["block"]


def test_where_it_is_ignored_it_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.remember()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with interrupt.held_back():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
