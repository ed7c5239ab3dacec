import numpy as np
import pytest

from hwsearch.bench.null import NullRuntime
from hwsearch.bench.timing import ENOUGH, take_turns
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
    assert samples["long"].latency_ms == pytest.approx(price.one(BERT).median_ms)
    assert samples["short"].latency_ms < samples["long"].latency_ms
    assert samples["long"].wall == pytest.approx(samples["long"].cpu)


def test_slow_spells_do_not_move_the_low_tenth(runtime: NullRuntime) -> None:
    rng = np.random.default_rng(0)
    disturbed = runtime.prepare(BERT, Workload(1, 128), lambda: 3.0 if rng.random() < 0.7 else 1.0)
    quiet = runtime.prepare(BERT, Workload(1, 128))
    samples = take_turns({"disturbed": disturbed, "quiet": quiet}, 10.0, clock=runtime.clock, cpu_clock=runtime.clock)
    assert samples["disturbed"].latency_ms == pytest.approx(samples["quiet"].latency_ms)
    assert np.median(samples["disturbed"].wall) > 1.2 * samples["quiet"].latency_ms


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
