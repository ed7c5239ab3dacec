"""Measurements that something disturbed are taken again."""

from hwsearch.bench.measurer import APART, SESSIONS_AT_MOST, Runs, agreeing
from hwsearch.bench.timing import Samples


def samples(apart: float) -> Samples:
    return Samples((1.0, 1.0 + apart), (1.0, 1.0))


def apart(found: Samples) -> float:
    return found.wall[1] - found.wall[0]


def sessions_of(**found: list[float]) -> tuple[dict[str, Samples], list[list[str]]]:
    """What is kept of such sessions, and what each of them looked at."""
    asked: list[list[str]] = []

    def session(runs: Runs) -> dict[str, Samples]:
        asked.append(list(runs))
        return {name: samples(found[name].pop(0)) for name in runs}

    return agreeing(dict.fromkeys(found, lambda: None), session, apart), asked


def test_what_agrees_is_measured_once() -> None:
    kept, asked = sessions_of(one=[0.0], other=[0.9 * APART])
    assert asked == [["one", "other"]]
    assert kept == {"one": samples(0.0), "other": samples(0.9 * APART)}


def test_what_does_not_is_measured_again_and_the_best_session_counts() -> None:
    kept, asked = sessions_of(quiet=[0.0], mended=[1.0, 0.0], busy=[1.0, 0.5, 0.8])
    assert asked == [["quiet", "mended", "busy"], ["mended", "busy"], ["busy"]]
    assert len(asked) == SESSIONS_AT_MOST
    assert kept == {"quiet": samples(0.0), "mended": samples(0.0), "busy": samples(0.5)}
