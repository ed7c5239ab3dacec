from collections.abc import Callable

import numpy as np
import pytest

from hwsearch.bench.board.turns import ENOUGH
from hwsearch.bench.null import NullRuntime
from hwsearch.bench.timing import Reference, Samples, take_turns
from hwsearch.profiles import find_profile
from hwsearch.workload import Workload
from tests.test_workload import BERT


@pytest.fixture
def runtime() -> NullRuntime:
    profile = find_profile("t4")
    return NullRuntime(profile, profile.target())


def test_a_quiet_device_gives_its_own_times(runtime: NullRuntime) -> None:
    short, long = (runtime.prepare(BERT, Workload(batch, 128)) for batch in (1, 8))
    samples = take_turns({"short": short, "long": long}, 10.0, clock=runtime.clock, cpu_clock=runtime.clock)
    from hwsearch.latency.estimator import Estimator

    price = Estimator(runtime.profile, runtime.target, Workload(8, 128))
    assert samples["long"].low_ms() == pytest.approx(price.one(BERT).median_ms)
    assert samples["short"].low_ms() < samples["long"].low_ms()
    assert samples["long"].wall == pytest.approx(samples["long"].cpu)


def test_slow_spells_do_not_move_the_low_tenth(runtime: NullRuntime) -> None:
    rng = np.random.default_rng(0)
    disturbed = runtime.prepare(BERT, Workload(1, 128), lambda: 3.0 if rng.random() < 0.7 else 1.0)
    quiet = runtime.prepare(BERT, Workload(1, 128))
    samples = take_turns({"disturbed": disturbed, "quiet": quiet}, 10.0, clock=runtime.clock, cpu_clock=runtime.clock)
    assert samples["disturbed"].low_ms() == pytest.approx(samples["quiet"].low_ms())
    assert np.median(samples["disturbed"].wall) > 1.2 * samples["quiet"].low_ms()


def test_everything_is_run_three_times_even_without_time(runtime: NullRuntime) -> None:
    samples = take_turns({"one": runtime.prepare(BERT, Workload())}, 0.0, clock=runtime.clock, cpu_clock=runtime.clock)
    assert len(samples["one"].wall) >= 3


def test_progress_ends_at_one(runtime: NullRuntime) -> None:
    told: list[float] = []
    take_turns(
        {"one": runtime.prepare(BERT, Workload())}, 1e9, told.append, clock=runtime.clock, cpu_clock=runtime.clock
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) == ENOUGH


class Machine:
    """A clock on which everything takes longer in a slow spell."""

    def __init__(self, spell: tuple[float, float], factor: float) -> None:
        self.now, self.spell, self.factor = 0.0, spell, factor

    def run(self, milliseconds: float) -> Callable[[], None]:
        def once() -> None:
            slow = self.spell[0] <= self.now < self.spell[1]
            self.now += milliseconds / 1e3 * (self.factor if slow else 1.0)

        return once

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("factor", [1.04, 1.35])
@pytest.mark.parametrize("spell", [(0.0, 2.0), (1.0, 4.0), (6.0, 1e9)])
def test_a_slow_spell_is_put_right_by_the_reference(spell: tuple[float, float], factor: float) -> None:
    machine = Machine(spell, factor)
    reference = Reference(machine.run(3.0), machine.clock)
    runs = {name: machine.run(ms) for name, ms in (("small", 2.0), ("large", 150.0))}
    first = take_turns(runs, 10.0, None, machine.clock, machine.clock, reference)
    again = take_turns({"later": machine.run(20.0)}, 20.0, None, machine.clock, machine.clock, reference)
    usual = reference.usual
    assert usual == pytest.approx(3.0, rel=1e-6)
    assert first["small"].low_ms(usual) == pytest.approx(2.0, rel=0.01)
    assert first["large"].low_ms(usual) == pytest.approx(150.0, rel=0.01)
    assert again["later"].low_ms(usual) == pytest.approx(20.0, rel=0.01)


def test_what_was_never_seen_at_usual_speed_is_to_be_measured_again() -> None:
    times = (1.0, 1.01, 1.02, 1.01, 1.0, 1.03, 1.01, 1.02)
    assert not Samples(times, times, (3.0,) * 8).disturbed(3.0)
    assert Samples(times, times, (4.0,) * 8).disturbed(3.0)
    assert Samples((0.8, *times), times, (3.0,) * 9).disturbed(3.0)
    both = Samples(times, times, (4.0,) * 8) + Samples(times, times, (3.0,) * 8)
    assert len(both.wall) == len(both.cpu) == len(both.reference) == 16
    assert not both.disturbed(3.0)
    assert both.low_ms(3.0) == pytest.approx(1.0)


def test_what_runs_beside_is_told_how_often(runtime: NullRuntime) -> None:
    told: list[tuple[bool, int]] = []
    samples = take_turns(
        {"one": runtime.prepare(BERT, Workload())},
        1e9,
        clock=runtime.clock,
        cpu_clock=runtime.clock,
        enough=4,
        beside={"one": lambda *turn: told.append(turn)},
    )
    assert told == [(True, 2)] * 4
    assert samples["one"].reference == ()
